"""One batch on many devices, each of which runs rows of its own.

The mesh is that of the context (`jax.set_mesh`); its axis `ROWS` divides the batch.
XLA partitions by itself what is no loop, and draws for the whole batch as one device
does, so masks of dropout are the same on any number of devices. In a loop over time it
would sum the weight gradient over the devices at every step: loops go through `Rows`,
which runs them on each device's rows alone.

With the axis `PARAMS` in the mesh the parameters are divided over the same devices
(fully sharded data parallel), and all that is shaped like them: gradients, the
optimizer's state, an average. What uses a large parameter goes through `with_gathered`:
the whole of it is there from before a loop over time until the step ends, and the sum
of its gradient over the devices leaves each with its part alone.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from lstm_jax.cotangents import map_cotangents

ROWS = "lstm_jax_rows"  # no name of a user's own axis
# Of size 1: that it is there says that parameters are divided, over ROWS.
PARAMS = "lstm_jax_params"
# Entries of the smallest array that is divided: a collective costs more than that
# array's memory.
_LEAST_ENTRIES = 1024


class Rows(NamedTuple):
    """Where the rows of arrays are.

    Attributes:
      none: for arrays without rows: every device has all of it.
      first: for rows along axis 0.
      second: for rows along axis 1, after time.
    """

    none: PartitionSpec = PartitionSpec()
    first: PartitionSpec = PartitionSpec(ROWS)
    second: PartitionSpec = PartitionSpec(None, ROWS)


def rows_last(ndim: int) -> PartitionSpec:
    """For rows along the last of so many axes."""
    return PartitionSpec(*[None] * (ndim - 1), ROWS)


def shards(batch_size: int) -> int:
    """Parts of a batch: the devices of the context, or 1 where they divide it not."""
    mesh = jax.sharding.get_abstract_mesh()
    count = mesh.shape[ROWS] if ROWS in mesh.auto_axes else 1
    return count if batch_size % count == 0 else 1


def divides(batch_size: int) -> bool:
    """Whether the context has more than one device, and as many rows for each."""
    return shards(batch_size) > 1


def on_each_device(
    function: Callable[..., Any], in_specs: PyTree, out_specs: PyTree
) -> Callable[..., Any]:
    """`function` on each device's rows; the specs say where rows are, as in `Rows`."""
    # Unchecked: the check knows no `custom_vjp` whose cotangents are sums.
    return jax.shard_map(
        function,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names={ROWS},
        check_vma=False,
    )


def param_specs(params: PyTree) -> PyTree:
    """How parameters, or what is shaped like them, are divided over the devices.

    Along their longest axis of those that the number of devices divides, of equal ones
    the first; not at all vectors, what is small, or where the context has no axis
    `PARAMS`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    divided = PARAMS in mesh.axis_names

    def spec(array: Any) -> PartitionSpec:
        shape = array.shape
        if not divided or len(shape) < 2 or math.prod(shape) < _LEAST_ENTRIES:
            return Rows().none
        sizes = [n if n % mesh.shape[ROWS] == 0 else 0 for n in shape]
        if not any(sizes):
            return Rows().none
        return PartitionSpec(*[None] * sizes.index(max(sizes)), ROWS)

    return jax.tree.map(spec, params)


def gather(params: PyTree, specs: PyTree) -> PyTree:
    """The whole of parameters of which each device has a part.

    Inside of `on_each_device`; the transpose sums gradients and leaves each its part.
    """

    def whole(array: Array, spec: PartitionSpec) -> Array:
        if ROWS not in spec:
            return array
        return lax.all_gather(array, ROWS, axis=len(spec) - 1, tiled=True)

    return jax.tree.map(whole, params, specs)


def total(gradient: PyTree, specs: PyTree) -> PyTree:
    """The sum over devices, each device's part of it; inside of `on_each_device`."""

    def summed(array: Array, spec: PartitionSpec) -> Array:
        if ROWS not in spec:
            return lax.psum(array, ROWS)
        return lax.psum_scatter(
            array, ROWS, scatter_dimension=len(spec) - 1, tiled=True
        )

    return map_cotangents(summed, gradient, specs)


def with_gathered(function: Callable[..., Array]) -> Callable[..., Array]:
    """`function(params, *rows)` where parameters are gathered, as of their use.

    Rows are along axis 0, of the result as well. Without divided parameters this is the
    function itself, and so XLA's to partition.
    """

    def apply(params: PyTree, *rows: Array) -> Array:
        specs = param_specs(params)
        some = any(ROWS in spec for spec in jax.tree.leaves(specs))
        if not some or not divides(rows[0].shape[0]):
            return function(params, *rows)

        def with_whole(params: PyTree, *rows: Array) -> Array:
            return function(gather(params, specs), *rows)

        first = Rows().first
        in_specs = specs, *[first] * len(rows)
        return on_each_device(with_whole, in_specs, first)(params, *rows)

    return apply


def split_rows(tree: PyTree) -> PyTree:
    """The same arrays, their rows (axis 0) divided over the devices."""

    def split(array: Any) -> Any:
        if array.ndim == 0 or not divides(array.shape[0]):
            return array
        return lax.with_sharding_constraint(array, Rows().first)

    return jax.tree.map(split, tree)


def replicate(tree: PyTree) -> PyTree:
    """The same arrays, all of them on every device."""
    if ROWS not in jax.sharding.get_abstract_mesh().auto_axes:
        return tree
    return jax.tree.map(lambda a: lax.with_sharding_constraint(a, Rows().none), tree)


def split_params(tree: PyTree) -> PyTree:
    """The same arrays, divided over the devices as `param_specs` says."""
    if ROWS not in jax.sharding.get_abstract_mesh().auto_axes:
        return tree
    return jax.tree.map(lax.with_sharding_constraint, tree, param_specs(tree))


def row_specs(tree: PyTree) -> PyTree:
    """How arrays with rows (axis 0) are divided over the devices."""
    none, first, _ = Rows()
    return jax.tree.map(
        lambda a: first if len(a.shape) and divides(a.shape[0]) else none, tree
    )


def shardings(specs: PyTree) -> PyTree:
    """Where arrays of these specs are, on the devices of the context."""
    mesh = jax.sharding.get_mesh()
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def put(tree: PyTree, specs: PyTree | None = None) -> PyTree:
    """Copies arrays to the devices of the context, if there is one.

    Args:
      tree: the arrays. Of several processes each has all of them, and puts on its
        devices what belongs there.
      specs: how they are divided; None: not at all.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return jax.device_put(tree)
    specs = jax.tree.map(lambda _: Rows().none, tree) if specs is None else specs
    places = shardings(specs)
    if jax.process_count() == 1:
        return jax.device_put(tree, places)

    def put_part(array: Any, place: NamedSharding) -> Array:
        whole = np.asarray(array)
        return jax.make_array_from_callback(whole.shape, place, lambda at: whole[at])

    return jax.tree.map(put_part, tree, places)


def put_rows(tree: PyTree) -> PyTree:
    """Divides the rows (axis 0) of arrays over the devices of the context."""
    return put(tree, row_specs(tree))
