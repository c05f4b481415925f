"""What a library's side has to offer, and what those on jax share."""

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lstm_jax.certify.cases import Arrays, Case, Problem
from lstm_jax.errors import UserError

RATE = 2.0**-6  # the same number in every type


class Optimizer(NamedTuple):
    """An optimizer as the library defines it.

    Attributes:
      theirs: `theirs(weights)` makes a function from gradients to the weights after a
        step; it keeps the optimizer's state.
      ours: the same here.
    """

    theirs: Callable[[Arrays], Callable[[Arrays], Arrays]]
    ours: optax.GradientTransformation


class Peer(NamedTuple):
    """A library to compare with.

    Attributes:
      library: its name among `lstm_jax.convert.files.LIBRARIES`.
      title: its name.
      versions: `versions()` tells those of all packages that are used.
      cells: that it has, as a config writes them.
      gate_orders: by cell.
      layers: of which its own layout knows several.
      run: `run(case, problem)` gives its values (`ys`, `final_h`, `final_c`) and the
        gradients of the loss by inputs and weights.
      optimizers: `optimizers()` gives them by name.
      held: tells of a weight whether the optimizer's steps leave it as it is.
      notes: what a reader of the certificate should know.
    """

    library: str
    title: str
    versions: Callable[[], dict[str, str]]
    cells: tuple[str, ...]
    gate_orders: Mapping[str, str]
    layers: int
    run: Callable[[Case, Problem], tuple[Arrays, Arrays]]
    optimizers: Callable[[], dict[str, Optimizer]]
    held: Callable[[Case, str], bool]
    notes: tuple[str, ...]


def load(package: str) -> Any:
    """Imports a library that is no dependency of this package.

    Raises:
      UserError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(
            f"{package} is not installed: pip install -e '.[certify]'"
        ) from None


def differentiated(
    apply: Callable[..., dict[str, Any]], case: Case, problem: Problem
) -> tuple[Arrays, Arrays]:
    """`Peer.run` of a library on jax.

    Args:
      apply: `apply(case, weights, inputs, lengths)` gives the values.
      case: of which.
      problem: its numbers.
    """
    values, gradients = _differentiated(apply, case, *problem)
    weights, inputs = gradients
    return jax.device_get(values), jax.device_get(inputs | weights)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _differentiated(
    apply: Callable[..., dict[str, Any]],
    case: Case,
    weights: Any,
    inputs: Any,
    lengths: Any,
    factors: Any,
) -> tuple[Any, Any]:
    def loss(weights: Any, inputs: Any) -> tuple[Any, Any]:
        values = apply(case, weights, inputs, lengths)
        total = jnp.zeros((), case.dtype)
        for name, value in values.items():
            total += jnp.sum(factors[name] * value)
        return total, values

    gradients, values = jax.grad(loss, (0, 1), has_aux=True)(weights, inputs)
    return values, gradients


def reversed_rows(xs: Any, lengths: Any) -> Any:
    """The first steps [B, T, ...] of each row in reverse, as TensorFlow has it."""
    steps = np.arange(xs.shape[1])[None]
    lengths = np.array([xs.shape[1]])[:, None] if lengths is None else lengths[:, None]
    at = jnp.where(steps < lengths, lengths - 1 - steps, steps)
    return jax.vmap(lambda row, at: row[at])(xs, jnp.broadcast_to(at, xs.shape[:2]))
