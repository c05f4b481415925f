"""Combinators around a whole cell: what follows its loop, and cells in sequence.

Shapes are those of `lstm_jax.cells`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from lstm_jax.cells import Cell, CellError, Noise, Params
from lstm_jax.unroll import unroll


def residual(cell: Cell) -> Cell:
    """Adds a step's input to its output, y + x: both of one size.

    Args:
      cell: any cell whose output is as wide as its input.

    Raises:
      CellError: when it is run, of outputs of another width.

    References:
      He et al., Deep residual learning for image recognition, arXiv:1512.03385 (2015);
      between the layers of an LSTM: Wu et al., arXiv:1609.08144 (2016).
    """

    def add(params: Params, xs: Array, ys: Array) -> Array:
        if xs.shape != ys.shape:
            raise CellError(
                f"residual adds {xs.shape[-1]} inputs to {ys.shape[-1]} outputs: they "
                "must be as many"
            )
        return ys + xs.astype(ys.dtype)

    return after(cell, add)


class StackCarry(NamedTuple):
    """State of a stack: the carry of each layer."""

    layers: tuple[Any, ...]


def stack(*cells: Cell) -> Cell:
    """Cells one after the other, as one cell: the outputs of one feed the next.

    Its parameters are those of the cells, under the names "layer_0" and on.

    Args:
      *cells: one or more; the output of each but the last is one array [B, Y].

    Raises:
      ValueError: no cell; when `init` is called, another output in between.
    """
    if not cells:
        raise ValueError("a stack has at least one cell")
    names = [f"layer_{i}" for i in range(len(cells))]

    def init(key: PRNGKeyArray, input_size: int) -> Params:
        params, size = {}, input_size
        keys = jax.random.split(key, len(cells))
        for name, cell, own_key in zip(names, cells, keys, strict=True):
            params[name] = cell.init(own_key, size)
            size = _output_size(cell, params[name], size)
        return params

    def initial_carry(params: Params, batch_size: int) -> StackCarry:
        return StackCarry(
            tuple(
                cell.initial_carry(params[name], batch_size)
                for name, cell in zip(names, cells, strict=True)
            )
        )

    def noise(key: PRNGKeyArray, params: Params, batch_size: int, time: int) -> Noise:
        keys = jax.random.split(key, len(cells))
        drawn = [
            Noise()
            if cell.noise is None
            else cell.noise(own_key, params[name], batch_size, time)
            for name, cell, own_key in zip(names, cells, keys, strict=True)
        ]
        return Noise(*(tuple(kind) for kind in zip(*drawn, strict=True)))

    def step(
        params: Params, carry: StackCarry, x: Array, noise: Noise | None = None
    ) -> tuple[StackCarry, PyTree]:
        new = []
        for i, (name, cell) in enumerate(zip(names, cells, strict=True)):
            drawn = ()
            if noise is not None and cell.noise is not None:
                drawn = (Noise(*(kind[i] for kind in noise)),)
            state, x = cell.step(params[name], carry.layers[i], x, *drawn)
            new.append(state)
        return StackCarry(tuple(new)), x

    def run(
        params: Params, xs: Array, carry: StackCarry, *, key: Any, **options: Any
    ) -> tuple[Any, ...]:
        keys = [None] * len(cells)
        if key is not None:
            keys = list(jax.random.split(key, len(cells)))
        last, every = [], []
        for i, (name, cell) in enumerate(zip(names, cells, strict=True)):
            state, xs, *carries = unroll(
                cell, params[name], xs, carry.layers[i], key=keys[i], **options
            )
            last.append(state)
            every += carries
        rest = (StackCarry(tuple(every)),) if options["return_carries"] else ()
        return StackCarry(tuple(last)), xs, *rest

    some = any(cell.noise is not None for cell in cells)
    return Cell(init, initial_carry, step, noise if some else None, None, run)


def _output_size(cell: Cell, params: Params, input_size: int) -> int:
    def first(params: Params) -> PyTree:
        x = jnp.zeros((1, input_size), jax.tree.leaves(params)[0].dtype)
        return cell.step(params, cell.initial_carry(params, 1), x)[1]

    y = jax.eval_shape(first, params)
    if not hasattr(y, "shape") or len(y.shape) != 2:
        raise ValueError(f"a cell of a stack must output an array [B, Y], got {y}")
    return y.shape[1]


def after(cell: Cell, change: Callable[[Params, Array, Array], Array]) -> Cell:
    """A cell whose outputs are changed, all steps at once.

    Args:
      cell: any cell.
      change: `change(params, xs, ys)`, the outputs; of one step or of all. Where xs
        and ys are zero, as at masked steps, it is too.
    """

    def step(
        params: Params, carry: Any, x: Array, noise: Noise | None = None
    ) -> tuple[Any, PyTree]:
        drawn = () if noise is None else (noise,)
        carry, y = cell.step(params, carry, x, *drawn)
        return carry, change(params, x, y)

    def run(params: Params, xs: Array, carry: Any, **options: Any) -> tuple[Any, ...]:
        carry, ys, *carries = unroll(cell, params, xs, carry, **options)
        return carry, change(params, xs, ys), *carries

    return Cell(cell.init, cell.initial_carry, step, cell.noise, None, run)
