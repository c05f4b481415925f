"""Gradient flow against Jacobians of a plain loop, and gates against their formulas."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_cells import (
    CELLS,
    HIDDEN,
    INPUT,
    random_carry,
    random_params,
    random_xs,
)
from jaxtyping import Array

import lstm_jax as lj
from lstm_jax import flow
from lstm_jax.combinators import project, residual, stack, zoneout
from lstm_jax.unroll import effective_resets

pytestmark = pytest.mark.usefixtures("x64", "strict")

BATCH, TIME = 2, 4
KEY = jax.random.key(3)


def relu_rnn() -> lj.Cell:
    """An activation whose derivative is its own."""
    return lj.simple_rnn(HIDDEN, jax.nn.relu)


def jitted() -> lj.Cell:
    """The output is computed of h in a call inside of the step."""

    @jax.jit
    def gates(extras: Any, carry: Any, zx: Array, zh: Array) -> Any:
        h = jnp.tanh(zx + zh)
        return lj.HiddenCarry(h), 2 * h

    return lj.gated(HIDDEN, 1, gates)


# Each cell, and what its output changes by where d is added to the hidden part.
Change = Callable[[Any, Array], Array]
FLOWS: dict[str, tuple[lj.Cell, Change]] = {
    **{
        name: (CELLS[name], lambda params, d: d)
        for name in (
            "lstm",
            "gru",
            "simple_rnn",
            "gru_before",
            "zoneout",
            "learned_initial",
        )
    },
    "min_gru": (lj.min_gru(HIDDEN), lambda params, d: d),
    "relu_rnn": (relu_rnn(), lambda params, d: d),
    "residual": (residual(lj.gru(INPUT)), lambda params, d: d),
    "all_noise": (
        CELLS["all_noise"],
        lambda params, d: jnp.expand_dims(params["gain"], 0) * d,
    ),
    "jitted": (jitted(), lambda params, d: 2 * d),
    "project": (
        project(lj.lstm(HIDDEN), 3),
        lambda params, d: d @ params["projection"],
    ),
}
# Whose steps have nothing that another one's lacks.
SLOW = (
    *("gru_before", "zoneout", "learned_initial", "residual", "project", "relu_rnn"),
    *("gru", "simple_rnn", "jitted", "min_gru"),
)


def loop(
    cell: lj.Cell,
    change: Change,
    params: Any,
    xs: Array,
    carry: Any,
    added: Array,
    running: list[int],
    valid: Array,
    begins: Array,
) -> tuple[Any, Array]:
    """(carry, ys), with `added` [B, T, H] to h after each step."""
    initial, ys = cell.initial_carry(params, xs.shape[0]), {}

    def choose(which: Array, a: Any, b: Any) -> Any:
        return jax.tree.map(
            lambda a, b: jnp.where(which.reshape(-1, *(1,) * (a.ndim - 1)), a, b), a, b
        )

    for t in running:
        before = choose(begins[:, t], initial, carry)
        new, y = cell.step(params, before, xs[:, t])
        new, y = new._replace(h=new.h + added[:, t]), y + change(params, added[:, t])
        carry = choose(valid[:, t], new, carry)
        ys[t] = choose(valid[:, t], y, jnp.zeros_like(y))
    return carry, jnp.stack([ys[t] for t in range(xs.shape[1])], axis=1)


def loss(weights: list[Array], outputs: Any) -> Array:
    """A number of the last carry and all outputs."""
    leaves = jax.tree.leaves(outputs)
    return sum(
        (jnp.sum(jnp.sin(w * a)) for w, a in zip(weights, leaves, strict=True)), 0.0
    )


def random_like(tree: Any, seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=a.shape)) for a in jax.tree.leaves(tree)]


# Rows with holes, one row of no valid step, and two boundaries.
MASK = np.array([[1, 0, 1, 0], [1, 1, 1, 1], [0] * 4], bool)
RESETS = np.array([[0] * 4, [0, 0, 1, 0], [1] * 4], bool)


@pytest.mark.parametrize(
    ("name", "masked", "reverse"),
    [
        *((name, False, False) for name in FLOWS if name not in SLOW),
        *(pytest.param(name, False, False, marks=pytest.mark.slow) for name in SLOW),
        ("gru", True, True),
        pytest.param("learned_initial", True, False, marks=pytest.mark.slow),
        pytest.param("lstm", False, True, marks=pytest.mark.slow),
    ],
)
def test_equals_jacobians_of_a_loop(name: str, masked: bool, reverse: bool) -> None:
    cell, change = FLOWS[name]
    batch = len(MASK) if masked else BATCH
    params, xs = random_params(cell), random_xs(batch, TIME)
    carry = random_carry(cell, params, batch)
    options: dict[str, Any] = {"carry": carry, "reverse": reverse}
    valid, begins = np.ones((batch, TIME), bool), np.zeros((batch, TIME), bool)
    if masked:
        options |= {"mask": jnp.asarray(MASK), "resets": jnp.asarray(RESETS)}
        valid = MASK
        begins = np.asarray(
            effective_resets(*map(jnp.asarray, (RESETS, MASK)), reverse)
        )
    running = list(range(TIME))[:: -1 if reverse else 1]
    plain = functools.partial(loop, cell, change, params, xs, carry, running=running)
    weights = random_like(jax.eval_shape(lambda: lj.unroll(cell, params, xs)), 4)

    @jax.jit
    def expected(added: Array) -> Any:
        masks = {"valid": jnp.asarray(valid), "begins": jnp.asarray(begins)}
        outputs = plain(added=added, **masks)
        cotangents = jax.grad(lambda out: loss(weights, out))(outputs)
        jacobian = jax.jacrev(lambda added: plain(added=added, **masks)[0].h)(added)
        gradient = jax.grad(lambda added: loss(weights, plain(added=added, **masks)))(
            added
        )
        return cotangents, jacobian, gradient

    @jax.jit
    def measured(cotangents: Any) -> Any:
        recording = flow.record(cell, params, xs, **options)
        return (
            flow.lag_gains(recording, KEY, probes=HIDDEN),
            flow.loss_gradients(recording, cotangents),
        )

    cotangents, jacobian, gradient = expected(
        jnp.zeros((batch, TIME, *carry.h.shape[1:]))
    )
    gains, norms = map(np.asarray, measured(cotangents))

    # By hand: the steps that each row's last one sees, the latest first.
    squares: list[list[float]] = [[] for _ in range(TIME)]
    for row in range(batch):
        lag = 0
        for t in reversed(running):
            if valid[row, t]:
                block = np.asarray(jacobian[row, :, row, t])
                squares[lag].append(float((block**2).sum()) / block.shape[0])
                lag += 1
                if begins[row, t]:
                    break
    for lag in range(TIME):
        want = np.sqrt(np.mean(squares[lag])) if squares[lag] else np.nan
        np.testing.assert_allclose(gains[lag], want, rtol=1e-9, err_msg=f"{lag}")
    for t in range(TIME):
        of_rows = np.square(np.asarray(gradient)[:, t]).sum(-1)[valid[:, t]]
        want = np.sqrt(of_rows.mean()) if of_rows.size else np.nan
        np.testing.assert_allclose(norms[t], want, rtol=1e-9, err_msg=f"{t}")


def test_a_stack_is_one_state_and_its_layers_see_each_other() -> None:
    first, second = lj.lstm(HIDDEN), lj.gru(3)
    cell = stack(first, second)
    params, xs = random_params(cell), random_xs(BATCH, TIME)
    carry = random_carry(cell, params, BATCH)
    weights = random_like((carry, xs[..., :3]), 4)

    def plain(within: bool, added: tuple[Array, Array]) -> Any:
        """`within`: what is added to the first layer reaches the second at once."""
        (one, two), ys = carry.layers, []
        for t in range(TIME):
            one, y = first.step(params["layer_0"], one, xs[:, t])
            one, y = (
                one._replace(h=one.h + added[0][:, t]),
                y + float(within) * added[0][:, t],
            )
            two, y = second.step(params["layer_1"], two, y)
            two, y = two._replace(h=two.h + added[1][:, t]), y + added[1][:, t]
            ys.append(y)
        return type(carry)((one, two)), jnp.stack(ys, axis=1)

    def last(added: tuple[Array, Array]) -> Array:
        state = plain(False, added)[0].layers
        return jnp.concatenate([state[0].h, state[1].h], axis=-1)

    @jax.jit
    def both() -> Any:
        zeros = (jnp.zeros((BATCH, TIME, HIDDEN)), jnp.zeros((BATCH, TIME, 3)))
        jacobian = jnp.concatenate(jax.jacrev(last)(zeros), axis=-1)
        gradient = jax.grad(lambda added: loss(weights, plain(True, added)))(zeros)
        cotangents = jax.grad(lambda out: loss(weights, out))(plain(True, zeros))
        recording = flow.record(cell, params, xs, carry)
        return (
            jacobian,
            jnp.concatenate(gradient, axis=-1),
            flow.lag_gains(recording, KEY, probes=100),
            flow.loss_gradients(recording, cotangents),
        )

    jacobian, gradient, gains, norms = both()
    squares = np.einsum("bibtj->bt", np.square(jacobian))[:, ::-1] / (HIDDEN + 3)
    np.testing.assert_allclose(gains, np.sqrt(squares.mean(0)), rtol=1e-9)
    squares = np.square(gradient).sum(-1)
    np.testing.assert_allclose(norms, np.sqrt(squares.mean(0)), rtol=1e-9)


def test_few_probes_are_right_on_average() -> None:
    cell = CELLS["gru"]
    params, xs = random_params(cell), random_xs(BATCH, TIME)

    @jax.jit
    def gains() -> Any:
        recording = flow.record(cell, params, xs)
        keys = jax.random.split(KEY, 2000)
        few = jax.vmap(lambda key: flow.lag_gains(recording, key, probes=1))(keys)
        return few, flow.lag_gains(recording, KEY, probes=HIDDEN)

    few, exact = map(np.asarray, gains())
    assert few.std(0)[2] > 0.1 * exact[2]  # they are random
    np.testing.assert_allclose(np.sqrt((few**2).mean(0)), exact, rtol=0.05)
    np.testing.assert_allclose(exact[0], 1, rtol=1e-12)


def test_the_cell_state_has_gains_of_its_own() -> None:
    """With gates that see no h and f alone at work, c keeps the product of f."""
    cell = lj.lstm(HIDDEN)
    params = random_params(cell)
    params |= {"recurrent_kernel": jnp.zeros_like(params["recurrent_kernel"])}
    xs = random_xs(BATCH, TIME)

    def gains_of(field: str) -> Any:
        recording = flow.record(cell, params, xs)
        return flow.lag_gains(recording, KEY, field=field, probes=HIDDEN)

    gains = jax.jit(lambda: gains_of("c"))()
    z = np.asarray(xs @ params["kernel"]) + np.asarray(params["bias"])
    f = 1 / (1 + np.exp(-z[..., HIDDEN : 2 * HIDDEN]))
    kept = np.cumprod(f[:, :0:-1], axis=1)  # of the last step, the last two, ...
    want = np.sqrt(np.square(kept).mean((0, 2)))
    np.testing.assert_allclose(gains, [1, *want], rtol=1e-9)
    with pytest.raises(ValueError, match="named 'x'"):
        jax.eval_shape(lambda: gains_of("x"))


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def shares(values: np.ndarray, low: float, high: float) -> list[float]:
    return [(values < low).mean(), (values > high).mean()]


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_gates_are_those_of_the_equations(name: str) -> None:
    cell, lengths = CELLS[name], np.array([4, 2])
    params, xs = random_params(cell), 6 * random_xs(BATCH, TIME)

    @jax.jit
    def measured() -> Any:
        recording = flow.record(cell, params, xs, lengths=jnp.asarray(lengths))
        return flow.saturation(recording), flow.time_constants(recording)

    found, by_field = measured()
    ((field, taus),) = by_field.items()
    assert field == ("c" if name == "lstm" else "h")

    p = jax.tree.map(np.asarray, params)
    gates: dict[str, list[np.ndarray]] = {}
    for row, length in enumerate(lengths):
        h = c = np.zeros(HIDDEN)
        for x in np.asarray(xs)[row, :length]:
            zx, zh = x @ p["kernel"] + p["bias"], h @ p["recurrent_kernel"]
            if name == "lstm":
                i, f, g, o = np.split(zx + zh, 4)
                i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
                c = f * c + i * g
                h = o * np.tanh(c)
                now = {"i": i, "f": f, "g": g, "o": o, "c": np.tanh(c)}
            else:
                (xr, xz, xn) = np.split(zx, 3)
                (hr, hz, hn) = np.split(zh + p["recurrent_bias"], 3)
                r, z = sigmoid(xr + hr), sigmoid(xz + hz)
                n = np.tanh(xn + r * hn)
                h = (1 - z) * n + z * h
                now = {"sigmoid_0": r, "sigmoid_1": z, "tanh_0": n}
            for key, value in now.items():
                gates.setdefault(key, []).append(value)
    assert found.keys() == gates.keys()
    for key, values in gates.items():
        low = -0.95 if key in ("g", "c", "tanh_0") else 0.05
        want = shares(np.array(values), low, 0.95)
        assert key == "c" or max(want) > 0.1, key  # some saturate
        np.testing.assert_allclose(found[key], want, rtol=1e-6, err_msg=key)
    kept = np.mean(gates["f" if name == "lstm" else "sigmoid_1"], axis=0)
    np.testing.assert_allclose(taus, -1 / np.log(kept), rtol=1e-9)


def taus_of(cell: lj.Cell, params: Any, xs: Array) -> np.ndarray:
    (found,) = fields_of(cell, params, xs).values()
    return found


def fields_of(cell: lj.Cell, params: Any, xs: Array) -> dict[str, np.ndarray]:
    found = jax.jit(lambda: flow.time_constants(flow.record(cell, params, xs)))()
    return {field: np.asarray(taus) for field, taus in found.items()}


class TwoMemories(NamedTuple):
    """A hidden state that is nothing of its own, two memories and a counter."""

    h: Array
    fast: Array
    slow: Array
    steps: Array


def two_memories(keep: tuple[float, float]) -> lj.Cell:
    def gates(extras: Any, carry: Any, zx: Array, zh: Array) -> Any:
        fast, slow = (
            a * b for a, b in zip(keep, (carry.fast, carry.slow), strict=True)
        )
        new = TwoMemories(jnp.tanh(slow + zh), fast + zx, slow + fast, carry.steps + 1)
        return new, new.h

    def initial_carry(params: Any, batch: int) -> TwoMemories:
        zeros = jnp.zeros((batch, HIDDEN), params["bias"].dtype)
        return TwoMemories(zeros, zeros, zeros, jnp.zeros((batch,), jnp.int32))

    return lj.gated(HIDDEN, 1, gates, TwoMemories, initial_carry=initial_carry)


def test_memories_are_told_by_field() -> None:
    """Whatever they are called; each has gains of its own."""
    cell, xs = two_memories((0.5, 0.9)), random_xs(BATCH, TIME)
    params = random_params(cell)
    found = flow.measure(cell, params, xs, probes=HIDDEN)
    assert set(found.lag_gains) == {"h", "fast", "slow"}
    taus = {"fast": -1 / np.log(0.5), "slow": -1 / np.log(0.9)}
    assert found.time_constants.keys() == taus.keys()
    for name, keep in (("fast", 0.5), ("slow", 0.9)):
        np.testing.assert_allclose(found.time_constants[name], [taus[name]] * HIDDEN)
        want = keep ** np.arange(TIME)
        np.testing.assert_allclose(found.lag_gains[name], want, rtol=1e-9)

    class Only(NamedTuple):
        """A state without an h."""

        a: Array
        b: Array

    cell = lj.Cell(
        lambda key, size: {"kernel": jnp.ones((size, HIDDEN))},
        lambda params, batch: Only(*jnp.zeros((2, batch, HIDDEN))),
        lambda params, carry, x: (
            Only(0.5 * carry.a, carry.b + x @ params["kernel"]),
            carry.a,
        ),
    )
    found = flow.measure(cell, random_params(cell), xs)
    np.testing.assert_allclose(found.time_constants["a"], taus["fast"])
    assert np.isposinf(found.time_constants["b"]).all()
    assert set(found.lag_gains) == {"h", "a", "b"}


def test_time_constants_of_other_cells() -> None:
    cell, xs = lj.simple_rnn(HIDDEN), random_xs(BATCH, TIME)
    np.testing.assert_array_equal(taus_of(cell, random_params(cell), xs), [0] * HIDDEN)

    cell = lj.min_gru(HIDDEN)
    params = random_params(cell)
    z = np.asarray(xs @ params["kernel"]) + np.asarray(params["bias"])
    kept = (1 - sigmoid(z[..., :HIDDEN])).mean((0, 1))
    taus = taus_of(cell, params, xs)
    np.testing.assert_allclose(taus, -1 / np.log(kept), rtol=1e-9)

    # A memory that only grows.
    def counts(extras: Any, carry: Any, zx: Array, zh: Array) -> Any:
        return lj.HiddenCarry(1.5 * carry.h + zx), carry.h

    cell = lj.gated(HIDDEN, 1, counts)
    assert np.isposinf(taus_of(cell, random_params(cell), xs)).all()


@pytest.mark.slow
def test_time_constants_of_a_stack_are_those_of_its_layers() -> None:
    first, second = lj.lstm(HIDDEN), zoneout(lj.lstm(3), 0.25)
    cell, xs = stack(first, second), random_xs(BATCH, TIME)
    params = random_params(cell)
    taus = taus_of(cell, params, xs)
    np.testing.assert_allclose(
        taus[:HIDDEN], taus_of(first, params["layer_0"], xs), rtol=1e-9
    )
    ys = lj.unroll(first, params["layer_0"], xs)[1]
    np.testing.assert_allclose(
        taus[HIDDEN:], taus_of(second, params["layer_1"], ys), rtol=1e-9
    )
    assert (np.exp(-1 / taus[HIDDEN:]) > 0.25).all()  # what zoneout keeps and f
    # All of one unit's, nothing of the others': not the derivative of the sum.
    assert len(set(taus.round(6))) == HIDDEN + 3


def test_measure_is_its_parts() -> None:
    cell = CELLS["lstm"]
    params, xs = random_params(cell), random_xs(BATCH, TIME)
    lengths = jnp.array([2, 4])
    outputs = lj.unroll(cell, params, xs, lengths=lengths)
    weights = random_like(outputs, 4)
    cotangents = jax.grad(lambda out: loss(weights, out))(outputs)
    found = flow.measure(
        cell, params, xs, cotangents, KEY, probes=HIDDEN, lengths=lengths
    )

    @jax.jit
    def parts() -> Any:
        recording = flow.record(cell, params, xs, lengths=lengths)
        return flow.Flow(
            {
                field: flow.lag_gains(recording, KEY, field=field, probes=HIDDEN)
                for field in ("h", "c")
            },
            flow.loss_gradients(recording, cotangents),
            flow.saturation(recording),
            flow.time_constants(recording),
        ), [  # of the state or of the outputs alone
            flow.loss_gradients(recording, (cotangents[0], None)),
            flow.loss_gradients(recording, (None, cotangents[1])),
        ]

    want, halves = parts()
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9), found, want)
    of_carry, of_ys = map(np.asarray, halves)
    assert of_carry[1] > 0
    assert of_ys[1] > 0
    assert found.loss_gradients is not None
    assert (np.asarray(found.loss_gradients) <= (1 + 1e-9) * (of_carry + of_ys)).all()
