"""Recurrent cells: a cell is a NamedTuple of pure functions.

Shapes: B batch, T time, D input features, H hidden units, G gates.

Most cells are their gate equations. `gated` turns these into a `Cell`: it adds the
parameters, the two products (input and recurrent), the batch, and what the fused
path of `lstm_jax.unroll` needs to run the cell fast, forward and backward.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray, PyTree

Params = dict[str, Any]
Activation = Callable[[Array], Array]
Initializer = Callable[..., Array]


class CellError(ValueError):
    """A cell whose parameters cannot be made: a size or a name does not fit."""


class LSTMCarry(NamedTuple):
    """State of an LSTM: hidden state `h` and cell state `c`, each [B, H]."""

    h: Array
    c: Array


class HiddenCarry(NamedTuple):
    """State of a cell with a hidden state only: `h` [B, H]."""

    h: Array


class Noise(NamedTuple):
    """Random draws of one sequence batch, made once, outside the loop over time.

    Noise is a constant to differentiation: no gradient flows into it.

    Attributes:
      shared: what all rows and steps have in common (a DropConnect mask).
      sequence: one draw a row, the same at every step; leaves [B, ...].
      step: one draw a row and step; leaves [B, T, ...], in a step [B, ...].
    """

    shared: PyTree = ()
    sequence: PyTree = ()
    step: PyTree = ()


class Fused(NamedTuple):
    """What the fused path needs to know of a cell.

    Attributes:
      gates: `gates(extras, carry, zx, zh, noise) -> (carry, y)`, for one row; noise
        is None or the row's `Noise` of one step.
      recurrent: `recurrent(params, h, noise) -> zh`, linear in h [B, H], noise None
        or a `Noise` of one step; None stands for h @ recurrent_kernel.
      dtype: type of the operands of the products; None: the parameters' type.
      lstm_gates: `gates` itself, if it is the LSTM with tanh and sigmoid, which cuDNN
        has; so a cell made from this one with other gates is not taken for it.
      unread: names of extras that `recurrent` reads and the gates do not.
      any_width: `recurrent` is the usual product but for noise: its h may be as wide as
        `recurrent_kernel` has rows, whatever that is.
      joint: the arrays of the carry mean something together alone, as those of an
        sLSTM, which are over exp(m): none may be mixed or clipped by itself.
    """

    gates: Callable[..., tuple[Any, PyTree]]
    recurrent: Callable[[Params, Array, Noise | None], Array] | None
    dtype: DTypeLike | None
    lstm_gates: Callable[..., tuple[Any, PyTree]] | None = None
    unread: tuple[str, ...] = ()
    any_width: bool = False
    joint: bool = False


class Cell(NamedTuple):
    """A recurrent cell.

    Attributes:
      init: `init(key, input_size) -> params`, a nested dict of arrays.
      initial_carry: `initial_carry(params, batch_size) -> carry`, a NamedTuple of
        arrays [B, ...].
      step: `step(params, carry, x) -> (carry, y)`, one step of the whole batch,
        x [B, D]. The step of a cell with noise takes a `Noise` of that step as last
        argument; None, the default, makes it deterministic.
      noise: `noise(key, params, batch_size, time) -> Noise`, or None.
      fused: what the fused path needs; None: the cell is differentiated through.
      unroll: the cell's own sequence function, called by `lstm_jax.unroll` in place
        of its loop, as `unroll(params, xs, carry, mask=, resets=, reverse=, key=,
        return_carries=, implementation=)`; None for a cell that is looped.
    """

    init: Callable[[PRNGKeyArray, int], Params]
    initial_carry: Callable[[Params, int], Any]
    step: Callable[..., tuple[Any, PyTree]]
    noise: Callable[[PRNGKeyArray, Params, int, int], Noise] | None = None
    fused: Fused | None = None
    unroll: Callable[..., Any] | None = None


# The parameters that `gated` owns; all others are extras and belong to the gates.
KERNELS = ("kernel", "recurrent_kernel", "bias")


def extras_of(params: Params) -> Params:
    """The parameters of a gated cell that go to its gate function."""
    return {name: value for name, value in params.items() if name not in KERNELS}


def check_features(x: Array, kernel: Array) -> None:
    """Refuses inputs of another width than the kernel's.

    Raises:
      ValueError: x has another number of features than the kernel takes.
    """
    if x.shape[-1] != kernel.shape[0]:
        raise ValueError(
            f"xs has {x.shape[-1]} features where the kernel takes {kernel.shape[0]}"
        )


def product(
    x: Float[Array, "*batch inputs"],
    kernel: Float[Array, "features outputs"],
    dtype: DTypeLike | None = None,
) -> Float[Array, "*batch outputs"]:
    """x @ kernel with operands cast to `dtype`, accumulated in the kernel's type.

    Raises:
      ValueError: x has another number of features than the kernel takes.
    """
    check_features(x, kernel)
    operand = kernel.dtype if dtype is None else dtype
    return jnp.matmul(
        x.astype(operand),
        kernel.astype(operand),
        preferred_element_type=kernel.dtype,
    )


def gated(
    hidden_size: int,
    num_gates: int,
    gates: Callable[..., tuple[Any, PyTree]],
    carry: type = HiddenCarry,
    *,
    init_extra: Callable[[PRNGKeyArray, int], Params] | None = None,
    initial_carry: Callable[[Params, int], Any] | None = None,
    recurrent: Callable[[Params, Array, Noise | None], Array] | None = None,
    noise: Callable[[PRNGKeyArray, Params, int, int], Noise] | None = None,
    kernel_init: Initializer = jax.nn.initializers.glorot_uniform(),
    recurrent_init: Initializer | None = jax.nn.initializers.orthogonal(),
    bias_init: Initializer = jax.nn.initializers.zeros,
    dtype: DTypeLike | None = None,
) -> Cell:
    """A cell from its gate equations, written for one row.

    >>> import jax, jax.numpy as jnp, lstm_jax as lj
    >>> def gates(extras, carry, zx, zh):  # a minimal gated unit
    ...   f, n = jnp.split(zx + zh, 2)
    ...   h = carry.h + jax.nn.sigmoid(f) * (jnp.tanh(n) - carry.h)
    ...   return lj.HiddenCarry(h), h
    >>> cell = lj.gated(hidden_size=8, num_gates=2, gates=gates)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> carry, ys = lj.unroll(cell, params, jnp.ones((2, 5, 3)))
    >>> ys.shape
    (2, 5, 8)

    Args:
      hidden_size: H, the size of `carry.h`.
      num_gates: G; zx = x @ kernel + bias and zh = h @ recurrent_kernel are [G*H].
      gates: `gates(extras, carry, zx, zh) -> (carry, y)` for one row: carry leaves
        [H] or any shape, y any array, not always h. It is only ever called through
        `jax.vmap`, and closes over no traced value: what may be traced belongs into
        the extras or the noise. Where `noise` is given, the row's `Noise` or None
        is the last argument.
      carry: the NamedTuple type of the carry, with a field `h`.
      init_extra: `init_extra(key, input_size)` gives a dict of further parameters,
        handed to `gates` as `extras`.
      initial_carry: `initial_carry(params, batch_size)`; by default every field is
        zeros [B, H].
      recurrent: `recurrent(params, h, noise) -> zh`, linear in h [B, H]; by default
        h @ recurrent_kernel. A block-diagonal product or a dropped kernel goes here.
      noise: `noise(key, params, batch_size, time) -> Noise`, drawn once a sequence.
      kernel_init: initialiser of `kernel` [D, G*H].
      recurrent_init: initialiser of `recurrent_kernel`, called with the shape
        [H, G*H]; what it returns is what `recurrent` gets. None: both kernels are
        one draw of `kernel_init` over [D + H, G*H], as in TF1 and Haiku.
      bias_init: initialiser of `bias` [G*H].
      dtype: type of the operands of the products (bfloat16); they accumulate and
        return in the parameters' type. None: the parameters' type.

    Returns:
      A `Cell` that `lstm_jax.unroll` runs on its fused path.

    Raises:
      ValueError: a size below 1, a carry type without a field `h`, or an extra
        named like a kernel (when `init` is called).
    """
    if hidden_size < 1 or num_gates < 1:
        raise ValueError(
            f"hidden_size and num_gates must be at least 1, got {hidden_size} and "
            f"{num_gates}"
        )
    if "h" not in getattr(carry, "_fields", ()):
        raise ValueError(f"carry must be a NamedTuple type with a field h, got {carry}")
    width = num_gates * hidden_size

    def init(key: PRNGKeyArray, input_size: int) -> Params:
        if input_size < 1:
            raise ValueError(f"input_size must be at least 1, got {input_size}")
        kernel_key, recurrent_key, bias_key, extra_key = jax.random.split(key, 4)
        if recurrent_init is None:
            joint = kernel_init(kernel_key, (input_size + hidden_size, width))
            kernel, recurrent_kernel = joint[:input_size], joint[input_size:]
        else:
            kernel = kernel_init(kernel_key, (input_size, width))
            recurrent_kernel = recurrent_init(recurrent_key, (hidden_size, width))
        params = {
            "kernel": kernel,
            "recurrent_kernel": recurrent_kernel,
            "bias": bias_init(bias_key, (width,)),
        }
        extras = {} if init_extra is None else init_extra(extra_key, input_size)
        if clash := sorted(params.keys() & extras.keys()):
            raise ValueError(f"an extra may not be named {clash[0]!r}: a kernel is")
        return params | extras

    def zeros(params: Params, batch_size: int) -> Any:
        like = jnp.zeros((batch_size, hidden_size), params["kernel"].dtype)
        return carry(*(like for _ in carry._fields))  # ty: ignore

    def row_gates(
        extras: Params, carry: Any, zx: Array, zh: Array, row_noise: Noise | None
    ) -> tuple[Any, PyTree]:
        last = () if noise is None else (row_noise,)
        return gates(extras, carry, zx, zh, *last)

    fused = Fused(row_gates, recurrent, dtype)
    return Cell(
        init=init,
        initial_carry=zeros if initial_carry is None else initial_carry,
        step=fused_step(fused),
        noise=noise,
        fused=fused,
    )


def fused_step(fused: Fused) -> Callable[..., tuple[Any, PyTree]]:
    """The `step` of a cell that is its gates."""

    def step(
        params: Params, carry: Any, x: Array, noise: Noise | None = None
    ) -> tuple[Any, PyTree]:
        zx = product(x, params["kernel"], fused.dtype)
        zx = zx + jnp.expand_dims(params["bias"], 0)
        zh = recurrent_product(fused, params, carry.h, noise)
        noise_axes = None if noise is None else Noise(None, 0, 0)
        rows = jax.vmap(fused.gates, in_axes=(None, 0, 0, 0, noise_axes))
        return rows(extras_of(params), carry, zx, zh, noise)

    return step


def with_fused(cell: Cell, fused: Fused, **fields: Any) -> Cell:
    """The cell with other gates or another recurrent product, and the step to them."""
    return cell._replace(step=fused_step(fused), fused=fused, **fields)


def recurrent_product(
    fused: Fused, params: Params, h: Float[Array, "B H"], noise: Noise | None
) -> Float[Array, "B G_H"]:
    """zh of a step: the cell's own product, or h @ recurrent_kernel."""
    if fused.recurrent is None:
        return product(h, params["recurrent_kernel"], fused.dtype)
    # In the parameters' type, whatever the cell's own product gives.
    return fused.recurrent(params, h, noise).astype(params["bias"].dtype)


def simple_rnn(
    hidden_size: int, activation: Activation = jnp.tanh, **options: Any
) -> Cell:
    """The simple recurrent network: h' = act(x W + h U + b).

    Args:
      hidden_size: H.
      activation: act.
      **options: `kernel_init`, `recurrent_init`, `bias_init`, `dtype` of `gated`.

    References:
      Elman, Finding structure in time, Cognitive Science 14 (1990).
    """

    def gates(
        extras: Params, carry: HiddenCarry, zx: Array, zh: Array
    ) -> tuple[HiddenCarry, Array]:
        del extras, carry
        h = activation(zx + zh)
        return HiddenCarry(h), h

    return gated(hidden_size, 1, gates, HiddenCarry, **options)


def lstm(
    hidden_size: int,
    activation: Activation = jnp.tanh,
    gate_activation: Activation = jax.nn.sigmoid,
    forget_bias: float = 1.0,
    *,
    peephole: bool = False,
    coupled: bool = False,
    bias_init: Initializer = jax.nn.initializers.zeros,
    **options: Any,
) -> Cell:
    """Long short-term memory, gates in the order i, f, g, o.

    c' = f c + i g and h' = o act(c'), where i, f, o = gate_act(.), g = act(.) of the
    blocks of x W + h U + b.

    Args:
      hidden_size: H.
      activation: act.
      gate_activation: gate_act.
      forget_bias: what the forget block of `bias` starts at; the forward pass adds
        nothing to it.
      peephole: i and f see p c besides, o sees p c'; the extra `peephole` has a vector
        p [H] for each, which starts at zero.
      coupled: i = 1 - f, and the gates are f, g, o.
      bias_init: initialiser of the other blocks of `bias`.
      **options: `kernel_init`, `recurrent_init`, `dtype` of `gated`.

    References:
      Hochreiter and Schmidhuber, Long short-term memory, Neural Computation 9
      (1997); forget gate: Gers, Schmidhuber and Cummins, Learning to forget,
      Neural Computation 12 (2000); peepholes: Gers, Schraudolph and Schmidhuber,
      Learning precise timing with LSTM recurrent networks, JMLR 3 (2002); coupled
      gates: Greff et al., LSTM: a search space odyssey, arXiv:1503.04069 (2015).
    """
    num_gates = 3 if coupled else 4

    def gates(
        extras: Params, carry: LSTMCarry, zx: Array, zh: Array
    ) -> tuple[LSTMCarry, Array]:
        *i, f, g, o = jnp.split(zx + zh, num_gates)

        def gate(z: Array, name: str, c: Array) -> Array:
            return gate_activation(z + extras["peephole"][name] * c if peephole else z)

        f = gate(f, "f", carry.c)
        i = gate(i[0], "i", carry.c) if i else 1 - f
        c = f * carry.c + i * activation(g)
        h = gate(o, "o", c) * activation(c)
        return LSTMCarry(h, c), h

    def forget_bias_init(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
        bias = bias_init(key, shape)
        start = (num_gates - 3) * hidden_size
        return bias.at[start : start + hidden_size].set(forget_bias)

    def init_extra(key: PRNGKeyArray, input_size: int) -> Params:
        del key, input_size
        names = "fo" if coupled else "ifo"
        return {"peephole": {name: jnp.zeros(hidden_size) for name in names}}

    cell = gated(
        hidden_size,
        num_gates,
        gates,
        LSTMCarry,
        init_extra=init_extra if peephole else None,
        bias_init=forget_bias_init,
        **options,
    )
    plain = not (peephole or coupled)
    fused = cast(Fused, cell.fused)
    if plain and activation is jnp.tanh and gate_activation is jax.nn.sigmoid:
        fused = fused._replace(lstm_gates=fused.gates)
    return cell._replace(fused=fused)


def gru(
    hidden_size: int,
    reset_after: bool = True,
    *,
    activation: Activation = jnp.tanh,
    gate_activation: Activation = jax.nn.sigmoid,
    **options: Any,
) -> Cell:
    """Gated recurrent unit, gates in the order r, z, n: h' = (1 - z) n + z h.

    Reset after the product (cuDNN, PyTorch, Keras's default):
    n = act(x Wn + bn + r (h Un + rbn)), with a `recurrent_bias` [3H].
    Reset before it (the paper): n = act(x Wn + bn + (r h) Un); two products in
    sequence do not fit the fused path, so this one is differentiated through.

    Args:
      hidden_size: H.
      reset_after: which of the two.
      activation: act.
      gate_activation: of r and z.
      **options: `kernel_init`, `recurrent_init`, `bias_init`, `dtype` of `gated`.

    References:
      Cho et al., Learning phrase representations using RNN encoder-decoder,
      arXiv:1406.1078 (2014), its versions 3 (before) and 1 (after).
    """
    if not reset_after:
        return _gru_reset_before(hidden_size, activation, gate_activation, **options)

    def gates(
        extras: Params, carry: HiddenCarry, zx: Array, zh: Array
    ) -> tuple[HiddenCarry, Array]:
        xr, xz, xn = jnp.split(zx, 3)
        hr, hz, hn = jnp.split(zh + extras["recurrent_bias"], 3)
        r, z = gate_activation(xr + hr), gate_activation(xz + hz)
        n = activation(xn + r * hn)
        h = (1 - z) * n + z * carry.h
        return HiddenCarry(h), h

    bias_init = options.get("bias_init", jax.nn.initializers.zeros)

    def init_extra(key: PRNGKeyArray, input_size: int) -> Params:
        del input_size
        return {"recurrent_bias": bias_init(key, (3 * hidden_size,))}

    return gated(hidden_size, 3, gates, HiddenCarry, init_extra=init_extra, **options)


def _gru_reset_before(
    hidden_size: int,
    activation: Activation,
    gate_activation: Activation,
    **options: Any,
) -> Cell:
    dtype = options.get("dtype")

    def step(params: Params, carry: HiddenCarry, x: Array) -> tuple[HiddenCarry, Array]:
        zx = product(x, params["kernel"], dtype) + jnp.expand_dims(params["bias"], 0)
        xr, xz, xn = jnp.split(zx, 3, axis=-1)
        gate_kernel, new_kernel = jnp.split(
            params["recurrent_kernel"], [2 * hidden_size], axis=-1
        )
        hr, hz = jnp.split(product(carry.h, gate_kernel, dtype), 2, axis=-1)
        r, z = gate_activation(xr + hr), gate_activation(xz + hz)
        n = activation(xn + product(r * carry.h, new_kernel, dtype))
        h = (1 - z) * n + z * carry.h
        return HiddenCarry(h), h

    def no_gates(*_: Any) -> Any:
        raise NotImplementedError

    # The parameters and the initial carry are those of any cell with three gates.
    like = gated(hidden_size, 3, no_gates, HiddenCarry, **options)
    return Cell(like.init, like.initial_carry, step)
