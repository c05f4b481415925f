"""Arrays on a mesh of the calling program's own.

On such a mesh the type of an array says where it is, and a loop over time refuses a
carry of another type than the step gives. There are two kinds:

- Of a mesh with explicit axes (`jax.make_mesh` makes them), the type has the array's
  sharding. `on_rows` runs a loop on each device's rows, so that no step waits for
  another device, and sums the gradient of what all rows share once, after the loop.
- Inside of `jax.shard_map` (unless `check_vma=False`) the type has the axes over which
  the array varies. `vary` gives all arrays of a loop the same ones, before it; its
  transpose is that same sum.

Elsewhere both do nothing. The project's own mesh is that of `lstm_jax.sharding`.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.core import Tracer
from jax.dtypes import float0
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

# Why a kernel that XLA knows nothing of cannot run inside of `jax.shard_map`.
UNTYPED = "its results do not say over which axes they vary: set check_vma=False"


def varying_axes(*trees: PyTree) -> tuple[str, ...]:
    """Return the axes of `jax.shard_map` over which any of the arrays varies."""
    axes = {name for leaf in _arrays(trees) for name in _varying(leaf)}
    return tuple(sorted(axes, key=str))


def vary(tree: PyTree, axes: tuple[str, ...]) -> PyTree:
    """Return the same arrays with types that vary over all the axes."""

    def cast(leaf: Any) -> Any:
        if leaf.dtype == float0:
            return leaf
        missing = tuple(name for name in axes if name not in _varying(leaf))
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(cast, tree) if axes else tree


def settle(whole: PyTree, rows: PyTree) -> tuple[PyTree, PyTree]:
    """Return both as `on_rows` needs them, resharded where they are elsewhere.

    Args:
      whole: arrays that all rows share: every device gets all of them.
      rows: arrays with rows along axis 0, which become sharded along it alone, as the
        first of them is that is sharded along it.
    """
    mesh = _mesh((whole, rows))
    if mesh is None:
        return whole, rows
    return _put(whole, mesh, PartitionSpec()), _put(rows, mesh, _row_spec(rows))


def on_rows(
    run: Callable[[PyTree, PyTree], PyTree],
    whole: PyTree,
    rows: PyTree,
    *,
    check_vma: bool = True,
) -> PyTree:
    """Return `run(whole, rows)`, computed on each device's rows.

    Args:
      run: gives arrays with rows along axis 0.
      whole: as in `settle`.
      rows: as in `settle`; first the one that says where rows are.
      check_vma: of `jax.shard_map`; False for operations that have no types there.
    """
    whole, rows = settle(whole, rows)
    spec = _row_spec(rows)
    if not spec:
        return run(whole, rows)
    return jax.shard_map(
        run,
        mesh=_mesh(rows, abstract=True),
        in_specs=(PartitionSpec(), spec),
        out_specs=spec,
        axis_names=set(_names(spec)),
        check_vma=check_vma,
    )(whole, rows)


def partitioned(
    draw: Callable[..., PyTree], rows: PyTree, has_rows: PyTree
) -> Callable[..., PyTree]:
    """Return a function whose work XLA divides among the devices of the context.

    Its values are those on one device, and so no two devices draw the same for their
    rows. Without a mesh in the context XLA divides the work by itself.

    Args:
      draw: a function of arrays.
      rows: as in `settle`.
      has_rows: a prefix of what it returns: whether that has rows along axis 0.
    """
    spec = _row_spec(rows)
    if not spec or jax.sharding.get_abstract_mesh().empty:
        return draw
    places = jax.tree.map(lambda has: spec if has else PartitionSpec(), has_rows)
    return jax.sharding.auto_axes(draw, axes=_names(spec), out_sharding=places)


def is_sharded(*trees: PyTree) -> bool:
    """Return whether any of the arrays is sharded over an explicit axis."""
    return _mesh(trees) is not None


def _arrays(tree: PyTree) -> list[Any]:
    """Leaves that have a type: what is no array is refused elsewhere."""
    return [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]


def _varying(leaf: Any) -> Any:
    return jax.typeof(leaf).manual_axis_type.varying


def _spec(leaf: Any) -> PartitionSpec:
    return jax.typeof(leaf).sharding.spec


def _row_spec(rows: PyTree) -> PartitionSpec:
    entries = [_spec(leaf)[:1] for leaf in _arrays(rows)]
    entry = next((entry[0] for entry in entries if entry and entry[0]), None)
    return PartitionSpec(entry) if entry else PartitionSpec()


def _names(row_spec: PartitionSpec) -> tuple[str, ...]:
    (entry,) = row_spec
    return entry if isinstance(entry, tuple) else (entry,)


def _mesh(tree: PyTree, abstract: bool = False) -> Any:
    """The mesh over which any of the arrays is sharded explicitly; None: none is."""
    for leaf in _arrays(tree):
        if any(_spec(leaf)):
            # Outside of `jax.jit` arrays of no mesh are copied to the devices of it.
            typed = abstract or isinstance(leaf, Tracer)
            return (jax.typeof(leaf) if typed else leaf).sharding.mesh
    return None


def _put(tree: PyTree, mesh: Any, spec: PartitionSpec) -> PyTree:
    place = NamedSharding(mesh, spec)
    move = (
        jax.device_put if isinstance(mesh, jax.sharding.Mesh) else jax.sharding.reshard
    )

    def put(leaf: Any) -> Any:
        now = jax.typeof(leaf).sharding
        wanted = (*spec, *[None] * (len(now.spec) - len(spec)))
        there = now.mesh == place.mesh.abstract_mesh and tuple(now.spec) == wanted
        # An array of no mesh is whole on each device of it. Resharded, its cotangent
        # would be sent to no mesh, of which `jax.vmap` over a sharded axis knows none.
        there |= now.mesh.empty and not any(spec) and isinstance(mesh, AbstractMesh)
        return leaf if there else move(leaf, place)

    return jax.tree.map(put, tree)
