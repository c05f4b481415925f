"""Cells as programs that run without this package: StableHLO, through `jax.export`.

A program is for any number of rows, and for processors, NVIDIA's GPUs and TPUs at once.
It has no weights in it: they are its first argument, arrays by name as
`lstm_jax.weights` writes them, so that they are loaded once for all programs and can be
exchanged. A carry is such a dict too: what calls the program knows no NamedTuple of
this package.

`python -m lstm_jax.export --workdir=checkpoints/imdb_lstm --out=exported` exports a
trained run, see `lstm_jax.serving`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax import export
from jaxtyping import DTypeLike, PyTree

from lstm_jax import command_line
from lstm_jax.cells import Cell
from lstm_jax.errors import UserError
from lstm_jax.nested import named_leaves, put_leaves
from lstm_jax.unroll import unroll

PLATFORMS = ("cpu", "cuda", "tpu")


def export_step(
    cell: Cell,
    params: PyTree,
    input_size: int,
    *,
    platforms: Sequence[str] = PLATFORMS,
) -> export.Exported:
    """One step of a cell, without noise.

    `docs/serving.md` has one written to a file and run without this package.

    Args:
      cell: any cell.
      params: its parameters, or their shapes and types.
      input_size: D.
      platforms: what the program is to run on, by jax's names.

    Returns:
      The program: (weights, x [B, D], carry) -> (y, carry).
    """
    params = jax.eval_shape(lambda: params)
    batch: Any = export.symbolic_shape("batch")[0]
    carry = jax.eval_shape(lambda p: cell.initial_carry(p, batch), params)

    def step(weights: Any, x: Any, given: Any) -> tuple[PyTree, Any]:
        new, y = cell.step(put_leaves(params, weights), put_leaves(carry, given), x)
        return _plain(y), named_leaves(new)

    x = jax.ShapeDtypeStruct((batch, input_size), _input_type(carry))
    return export_program(
        step, named_leaves(params), x, named_leaves(carry), platforms=platforms
    )


def export_sequence(
    cell: Cell,
    params: PyTree,
    input_size: int,
    *,
    time: int | None = None,
    lengths: bool = False,
    carry: bool = False,
    platforms: Sequence[str] = PLATFORMS,
) -> export.Exported:
    """`lstm_jax.unroll` of a cell, without noise.

    Args:
      cell: any cell.
      params: its parameters, or their shapes and types.
      input_size: D.
      time: T; None: the program is for any, 1 or more. Knowing it helps an
        accelerator, and lets `min_gru` and `min_lstm` run over all steps at once.
      lengths: the program takes the number of valid steps of each row.
      carry: the program takes the carry before the first step; else it starts from
        the cell's initial one.
      platforms: what the program is to run on, by jax's names.

    Returns:
      The program: (weights, xs [B, T, D]) -> (ys [B, T, ...], carry); `lengths`
      int32 [B] and the carry, where it takes them, are arguments after xs in this
      order.
    """
    params = jax.eval_shape(lambda: params)
    batch: Any
    batch, steps = export.symbolic_shape(f"batch, {'time' if time is None else time}")
    initial = jax.eval_shape(lambda p: cell.initial_carry(p, batch), params)

    def sequence(weights: Any, xs: Any, *rest: Any) -> tuple[PyTree, Any]:
        last, ys = unroll(
            cell,
            put_leaves(params, weights),
            xs,
            put_leaves(initial, rest[-1]) if carry else None,
            lengths=rest[0] if lengths else None,
        )
        return _plain(ys), named_leaves(last)

    xs = jax.ShapeDtypeStruct((batch, steps, input_size), _input_type(initial))
    rest: list[Any] = []
    if lengths:
        rest.append(jax.ShapeDtypeStruct((batch,), jnp.int32))
    if carry:
        rest.append(named_leaves(initial))
    return export_program(
        sequence, named_leaves(params), xs, *rest, platforms=platforms
    )


def export_program(
    function: Callable[..., Any], *arguments: Any, platforms: Sequence[str] = PLATFORMS
) -> export.Exported:
    """A function of these shapes and types as a program.

    jax refuses to export what it does not promise to run in later versions. The program
    tells nothing of the machine: no path of a source file is in it.
    """
    config: Any = jax.config  # whose options have no types
    limit = config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        return export.export(jax.jit(function), platforms=platforms)(*arguments)
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)


def serialize(program: export.Exported) -> bytes:
    """The bytes that `jax.export.deserialize` reads.

    Raises:
      UserError: flatbuffers is not installed.
    """
    try:
        return bytes(program.serialize())
    except ImportError:
        raise UserError(
            "flatbuffers is not installed: pip install -e '.[export]'"
        ) from None


def main() -> None:
    """Exports the run that the flags name."""
    from lstm_jax import serving  # for cells alone neither Flax nor Orbax is needed
    from lstm_jax.devices import all_devices

    values = flags.FLAGS
    all_devices()  # or a line says that there are none
    serving.export_run(values.workdir, values.out, values.step)


def _input_type(carry: PyTree) -> DTypeLike:
    """The type of the inputs of a cell with this carry, as `unroll` casts them."""
    types = [leaf.dtype for leaf in jax.tree.leaves(carry)]
    return next(d for d in types if jnp.issubdtype(d, jnp.floating))


def _plain(tree: PyTree) -> Any:
    """An array as it is; other outputs of a cell by the names of their leaves."""
    return tree if isinstance(tree, jax.Array) else named_leaves(tree)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    flags.DEFINE_string("out", None, "Folder to write, new or empty.", required=True)
    flags.DEFINE_integer("step", None, "Checkpoint; default: the best or the last.")
    command_line.run(main)
