"""Combinators and further cells: the laws of `unroll`, and their own."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_cells import (
    INPUT,
    noise_key,
    random_carry,
    random_params,
    random_xs,
)
from reference import (
    assert_close,
    assert_same_bits,
    outputs_and_gradients,
    python_unroll,
)
from schedules import ROWS_LAST, scheduled

import lstm_jax as lj
from lstm_jax.cells import CellError
from lstm_jax.combinators import (
    block_diagonal,
    clip,
    drop_connect,
    layer_norm,
    learned_initial_carry,
    project,
    recurrent_dropout,
    residual,
    stack,
    zoneout,
)
from lstm_jax.lab import laws
from lstm_jax.schedule import parallel_over_time

pytestmark = pytest.mark.usefixtures("strict", "x64")

H, BATCH, TIME = 4, 3, 7
G = 4 * H
LSTM = G * (INPUT + H + 1)
# Each with its number of parameters.
CELLS: dict[str, tuple[lj.Cell, int]] = {
    "peephole": (lj.lstm(H, peephole=True), LSTM + 3 * H),
    "coupled": (lj.lstm(H, coupled=True), LSTM * 3 // 4),
    "coupled_peephole": (
        lj.lstm(H, coupled=True, peephole=True),
        LSTM * 3 // 4 + 2 * H,
    ),
    "mgu": (lj.mgu(H), LSTM // 2),
    "indrnn": (lj.indrnn(H), H * (INPUT + 2)),
    "slstm": (lj.slstm(H), LSTM),
    "min_gru": (lj.min_gru(H), 2 * H * (INPUT + 1)),
    "min_lstm": (lj.min_lstm(H), 3 * H * (INPUT + 1)),
    "layer_norm": (layer_norm(lj.lstm(H)), LSTM + 3 * G),
    "layer_norm_gru": (layer_norm(lj.gru(H)), 3 * H * (INPUT + H + 2) + 9 * H),
    "zoneout": (zoneout(lj.gru(H), 0.3), 3 * H * (INPUT + H + 2)),
    "drop_connect": (drop_connect(lj.lstm(H), 0.3), LSTM),
    "clip": (clip(lj.lstm(H), 0.2), LSTM),
    "project": (project(lj.lstm(H), 2), LSTM - 2 * G + 2 * H),
    "project_noise": (
        project(zoneout(recurrent_dropout(drop_connect(lj.lstm(H), 0.3), 0.4), 0.2), 2),
        LSTM - 2 * G + 2 * H,
    ),
    "block_diagonal": (block_diagonal(lj.slstm(H), 2), LSTM - H * G // 2),
    "learned_initial_carry": (learned_initial_carry(lj.lstm(H)), LSTM + 2 * H),
    "residual": (residual(lj.lstm(INPUT)), 4 * INPUT * (2 * INPUT + 1)),
    "stack": (
        stack(lj.lstm(H), zoneout(lj.simple_rnn(2), 0.2), lj.min_gru(3)),
        LSTM + 2 * (H + 3) + 6 * 3,
    ),
    "all_noise": (
        zoneout(drop_connect(recurrent_dropout(lj.lstm(H), 0.3), 0.4), 0.2),
        LSTM,
    ),
    "deep": (
        stack(
            residual(
                zoneout(layer_norm(learned_initial_carry(clip(lj.lstm(3), 0.5))), 0.1)
            ),
            project(lj.lstm(H, peephole=True), 2),
        ),
        *(84 + 6 + 36 + (LSTM - 2 * G + 2 * H + 3 * H),),
    ),
}
FUSED = [
    *("slstm", "project_noise"),
    *(
        pytest.param(name, marks=pytest.mark.slow)  # as those, or simpler
        for name in (
            *("peephole", "coupled", "mgu", "indrnn", "clip", "zoneout"),
            "learned_initial_carry",
            *("drop_connect", "project", "all_noise", "layer_norm_gru"),
            *("block_diagonal", "deep"),
        )
    ),
]
# Simpler than others, which show as much.
SIMPLE = (
    *("coupled", "coupled_peephole", "layer_norm_gru", "drop_connect", "clip"),
    *("project", "learned_initial_carry", "all_noise", "peephole", "mgu", "indrnn"),
    *("slstm", "min_lstm", "zoneout", "residual", "deep", "project_noise"),
)


def cell_of(name: str) -> lj.Cell:
    return CELLS[name][0]


def options_of(name: str) -> dict[str, Any]:
    rng = np.random.default_rng(len(name))
    return {
        "mask": rng.random((BATCH, TIME)) < 0.7,
        "resets": rng.random((BATCH, TIME)) < 0.3,
        "reverse": len(name) % 2 == 0,
    }


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SIMPLE else ())
        for name in CELLS
    ],
)
def test_is_a_loop_of_its_step(name: str) -> None:
    """With a mask, resets, a carry, with noise and without; parallel ones as well."""
    cell, count = CELLS[name]
    params = random_params(cell)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    xs, carry = random_xs(BATCH, TIME), random_carry(cell, params, BATCH)
    options = options_of(name)
    for key in (None, noise_key(0)):
        noise = None
        if key is not None:
            if cell.noise is None:
                continue
            noise = cell.noise(key, params, BATCH, TIME)
        found = lj.unroll(
            cell,
            params,
            xs,
            carry,
            mask=jnp.asarray(options["mask"]),
            resets=jnp.asarray(options["resets"]),
            reverse=options["reverse"],
            key=key,
            return_carries=True,
        )
        expected = python_unroll(
            cell,
            params,
            xs,
            carry,
            valid=options["mask"],
            resets=options["resets"],
            reverse=options["reverse"],
            noise=noise,
        )
        assert_close(found, expected)
        assert not np.any(np.asarray(found[1])[~options["mask"]])


# A minute a cell on two busy cores; all of CELLS obey them.
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["zoneout", "project_noise", "block_diagonal", "stack", "min_lstm"]
)
def test_obeys_every_law_of_the_lab(name: str) -> None:
    found = laws.check(cell_of(name), INPUT, lambda law: None)
    assert [law for law in found if not law.holds] == []


@pytest.mark.parametrize("name", FUSED)
def test_fused_equals_autodiff(name: str) -> None:
    cell = cell_of(name)
    params = random_params(cell)
    xs, carry = random_xs(BATCH, TIME), random_carry(cell, params, BATCH)
    options = {
        k: v if k == "reverse" else jnp.asarray(v) for k, v in options_of(name).items()
    }
    key = None if cell.noise is None else noise_key(1)

    def run(implementation: str) -> Any:
        return outputs_and_gradients(
            cell, params, xs, carry, key=key, implementation=implementation, **options
        )

    fused, autodiff = run("fused"), run("autodiff")
    assert_close(fused, autodiff)
    # Too few rows for it to be chosen here.
    with scheduled(ROWS_LAST._replace(chunk=3)):
        assert_close(run("fused"), autodiff)
    for path, leaf in jax.tree_util.tree_leaves_with_path(fused[1][0]):
        assert float(np.max(np.abs(leaf))) > 0, path


@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        *(("min_gru", "autodiff"), ("min_lstm", "fused")),
        pytest.param("min_gru", "fused", marks=pytest.mark.slow),
        pytest.param("min_lstm", "autodiff", marks=pytest.mark.slow),
    ],
)
def test_a_parallel_cell_has_the_gradients_of_its_loop(
    name: str, implementation: Any
) -> None:
    """In parallel over time, and as the loop that a processor takes for many rows."""
    cell = cell_of(name)
    params, xs = random_params(cell), random_xs(BATCH, TIME)
    carry, options = random_carry(cell, params, BATCH), options_of(name)
    weights = np.cos(np.arange(BATCH * TIME * H)).reshape(BATCH, TIME, H)

    def gradients(run: Any) -> Any:
        def loss(params: Any, xs: Any, carry: Any) -> Any:
            last, ys = run(params, xs, carry)[:2]
            return jnp.sum(weights * ys) + jnp.sum(last.h)

        return jax.grad(loss, argnums=(0, 1, 2))(params, xs, carry)

    mask, resets = jnp.asarray(options["mask"]), jnp.asarray(options["resets"])
    reverse = options["reverse"]
    assert_close(
        gradients(
            lambda *a: lj.unroll(
                cell,
                *a,
                mask=mask,
                resets=resets,
                reverse=reverse,
                implementation=implementation,
            )
        ),
        gradients(
            lambda *a: python_unroll(
                cell,
                *a,
                valid=options["mask"],
                resets=options["resets"],
                reverse=reverse,
            )
        ),
    )
    empty = lj.unroll(cell, params, xs[:, :0], carry, implementation=implementation)
    assert_same_bits(empty[0], carry)
    assert empty[1].shape == (BATCH, 0, H)


def test_which_cells_are_parallel() -> None:
    cell = cell_of("min_gru")
    params = random_params(cell)

    def loops(implementation: Any, batch: int) -> int:
        traced = jax.make_jaxpr(
            lambda xs: lj.unroll(cell, params, xs, implementation=implementation)
        )(random_xs(batch, TIME))
        return str(traced).count("scan[")

    assert (loops("auto", 3), loops("auto", 8), loops("autodiff", 8)) == (0, 1, 0)
    assert [parallel_over_time("gpu", batch, 5) for batch in (1, 512)] == [True, True]


@pytest.mark.parametrize("implementation", ["cudnn", "pallas"])
@pytest.mark.parametrize("wrap", [lambda cell: cell, residual, stack])
def test_no_kernel_has_the_cells_in_parallel(implementation: Any, wrap: Any) -> None:
    cell = wrap(lj.min_gru(INPUT))
    with pytest.raises(ValueError, match=f"implementation='{implementation}' cannot"):
        lj.unroll(
            cell, random_params(cell), random_xs(1, 2), implementation=implementation
        )


def ys_of(cell: lj.Cell, params: Any, key: Any = None) -> Any:
    return lj.unroll(cell, params, random_xs(BATCH, TIME), key=key)


def test_residual_of_a_zero_cell_is_the_identity() -> None:
    cell = residual(lj.simple_rnn(INPUT))
    params = jax.tree.map(jnp.zeros_like, random_params(cell))
    np.testing.assert_array_equal(ys_of(cell, params)[1], random_xs(BATCH, TIME))


def test_rates_of_zero_and_wide_limits_change_nothing() -> None:
    plain = lj.lstm(H)
    params = random_params(plain)
    expected = ys_of(plain, params)
    for cell in (
        zoneout(plain, 0.0),
        drop_connect(plain, 0.0),
        recurrent_dropout(plain, 0.0),
        clip(plain, 100.0),
        stack(plain),
    ):
        own = {"layer_0": params} if cell.unroll is not None else params
        last, ys = ys_of(cell, own, noise_key(0))
        assert_close(ys, expected[1])
        assert_close(jax.tree.leaves(last), jax.tree.leaves(expected[0]))


def test_zoneout_keeps_what_was_drawn() -> None:
    cell = zoneout(lj.lstm(H), 0.4)
    params = random_params(cell)
    assert cell.noise is not None
    kept = cell.noise(noise_key(0), params, BATCH, TIME).step[0]
    first = random_carry(cell, params, BATCH)
    _, ys, carries = lj.unroll(
        cell,
        params,
        random_xs(BATCH, TIME),
        first,
        key=noise_key(0),
        return_carries=True,
    )
    np.testing.assert_array_equal(ys, carries.h)
    for after, before, stays in zip(carries, first, kept, strict=True):
        before = np.concatenate([before[:, None], after[:, :-1]], axis=1)
        np.testing.assert_array_equal(np.asarray(after)[stays], before[stays])
        assert not np.any(np.asarray(after)[~stays] == before[~stays])
    # Without a key, the mean of what the keys give at the first step.
    mean = lj.unroll(cell, params, random_xs(BATCH, 1), first)[0]
    plain = lj.unroll(lj.lstm(H), params, random_xs(BATCH, 1), first)[0]
    assert_close(mean, jax.tree.map(lambda a, b: 0.4 * a + 0.6 * b, first, plain))


class Counting(NamedTuple):
    """A state that knows how many steps it has made."""

    h: Any
    steps: Any


def test_a_counter_in_the_state_is_left_alone() -> None:
    """And fused, with noise and without, it is what it is by autodiff."""

    def gates(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
        h = jnp.tanh(zh + zx / (1 + carry.steps.astype(zx.dtype)))
        return Counting(h, carry.steps + 1), h

    def initial_carry(params: Any, batch: int) -> Counting:
        zeros = jnp.zeros((batch, H), params["bias"].dtype)
        return Counting(zeros, jnp.zeros((batch,), jnp.int32))

    plain = lj.gated(H, 1, gates, Counting, initial_carry=initial_carry)
    cell = zoneout(learned_initial_carry(clip(plain, 0.5)), 0.4)
    params = random_params(cell)
    assert params["initial_carry"].keys() == {"h"}
    for key in (None, noise_key(0)):
        (last, ys), expected = (
            lj.unroll(
                cell,
                params,
                random_xs(BATCH, TIME),
                key=key,
                lengths=jnp.array([TIME, 2, 0]),
                implementation=implementation,
            )
            for implementation in ("fused", "autodiff")
        )
        assert_close(jax.tree.leaves((last, ys)), jax.tree.leaves(expected))
        np.testing.assert_array_equal(last.steps, [TIME, 2, 0])


@pytest.mark.parametrize("combinator", [drop_connect, recurrent_dropout, zoneout])
def test_the_same_is_drawn_in_float64(combinator: Any) -> None:
    cell = combinator(lj.lstm(H), 0.4)
    drawn = []
    for wide in (False, True):
        with jax.enable_x64(wide):
            params = random_params(cell)
            drawn.append(cell.noise(noise_key(0), params, BATCH, TIME))
    assert all(leaf.dtype != jnp.float64 for leaf in jax.tree.leaves(drawn[0]))
    masks = [jax.tree.map(lambda a: np.asarray(a) != 0, noise) for noise in drawn]
    jax.tree.map(np.testing.assert_array_equal, *masks)


def test_layer_norm_takes_no_scale_of_the_products() -> None:
    cell = layer_norm(lj.lstm(H))
    params = cell.init(jax.random.key(0), INPUT)
    # A forget bias counts after the norm.
    np.testing.assert_array_equal(params["layer_norm"]["shift"][H : 2 * H], 1)
    assert not np.any(params["bias"])
    larger = {name: 50.0 * params[name] for name in ("kernel", "recurrent_kernel")}
    np.testing.assert_allclose(
        ys_of(cell, params | larger)[1], ys_of(cell, params)[1], rtol=1e-3, atol=1e-4
    )


def test_projected_is_an_lstm_of_projected_states() -> None:
    cell = project(lj.lstm(H), 2)
    p = {k: np.asarray(v) for k, v in random_params(cell).items()}
    xs = np.asarray(random_xs(BATCH, TIME))
    h, c, outputs = np.zeros((BATCH, 2)), np.zeros((BATCH, H)), []
    for t in range(TIME):
        z = xs[:, t] @ p["kernel"] + p["bias"] + h @ p["recurrent_kernel"]
        i, f, g, o = np.split(z, 4, -1)
        i, f, o = (1 / (1 + np.exp(-a)) for a in (i, f, o))
        c = f * c + i * np.tanh(g)
        h = (o * np.tanh(c)) @ p["projection"]
        outputs.append(h)
    assert_close(ys_of(cell, jax.tree.map(jnp.asarray, p))[1], np.stack(outputs, 1))


def test_a_projections_noise_is_of_what_is_projected() -> None:
    cell = project(recurrent_dropout(lj.simple_rnn(H), 0.5), 2)
    params, xs = random_params(cell), random_xs(BATCH, TIME)
    assert cell.noise is not None
    mask = cell.noise(noise_key(0), params, BATCH, TIME).sequence[0]
    assert mask.shape == (BATCH, 2)
    assert set(np.unique(mask)) == {0, 2}
    p, outputs = {k: np.asarray(v) for k, v in params.items()}, []
    y = np.zeros((BATCH, 2))
    for t in range(TIME):
        z = np.asarray(xs)[:, t] @ p["kernel"] + p["bias"]
        h = np.tanh(z + (y * mask) @ p["recurrent_kernel"])
        y = h @ p["projection"]
        outputs.append(y)
    assert_close(ys_of(cell, params, noise_key(0))[1], np.stack(outputs, 1))


def test_heads_see_themselves_alone() -> None:
    cell = block_diagonal(lj.lstm(H), 2)
    params = random_params(cell)

    def last(h: Any) -> Any:
        carry = lj.LSTMCarry(h, jnp.zeros_like(h))
        return lj.unroll(cell, params, random_xs(1, 1), carry)[1][0, 0]

    jacobian = np.asarray(jax.jacobian(last)(jnp.ones((1, H))))[:, 0]
    assert not np.any(jacobian[:2, 2:])
    assert not np.any(jacobian[2:, :2])
    assert np.all(jacobian[:2, :2])


def test_block_diagonal_keeps_the_size_of_the_product() -> None:
    """Of random h, drawn as the whole kernel is."""
    whole = lj.lstm(64).init(jax.random.key(0), INPUT)["recurrent_kernel"]
    blocks = block_diagonal(lj.lstm(64), 4).init(jax.random.key(0), INPUT)
    kernel = blocks["recurrent_kernel"]
    assert kernel.shape == (4, 16, 64)
    assert float(jnp.std(kernel) * 4) == pytest.approx(
        float(jnp.std(whole) * 8), rel=0.1
    )


def test_slstm_is_its_equations_without_a_stabiliser() -> None:
    cell = lj.slstm(H)
    p = {k: np.asarray(v) for k, v in random_params(cell).items()}
    xs = np.asarray(random_xs(BATCH, TIME))
    h, c, n = (np.zeros((BATCH, H)) for _ in range(3))
    outputs = []
    for t in range(TIME):
        z = xs[:, t] @ p["kernel"] + p["bias"] + h @ p["recurrent_kernel"]
        i, f, g, o = np.split(z, 4, -1)
        i, f, o = np.exp(i), 1 / (1 + np.exp(-f)), 1 / (1 + np.exp(-o))
        c, n = f * c + i * np.tanh(g), f * n + i
        h = o * c / n
        outputs.append(h)
    params = jax.tree.map(jnp.asarray, p)
    assert_close(ys_of(cell, params)[1], np.stack(outputs, 1))
    # Inputs that would overflow, and underflow.
    for scale in (1e3, -1e3):
        xs = jnp.asarray(scale * xs / np.abs(xs))
        value, gradient = jax.value_and_grad(
            lambda p, xs=xs: jnp.sum(lj.unroll(cell, p, xs)[1] ** 2)
        )(params)
        assert math.isfinite(value)
        assert all(bool(jnp.all(jnp.isfinite(a))) for a in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: zoneout(lj.lstm(H), 1.0), r"rate must be in \[0, 1\)"),
        (lambda: zoneout(lj.lstm(H), 1e-6), "as a multiple of 1 / 65536, got 1e-06"),
        (lambda: zoneout(lj.lstm(H), 1 - 1e-6), "as a multiple of 1 / 65536"),
        (lambda: drop_connect(lj.lstm(H), -0.1), r"rate must be in \[0, 1\)"),
        (lambda: clip(lj.lstm(H), 0.0), "limit must be greater than 0"),
        (lambda: clip(lj.lstm(H), math.nan), "limit must be greater than 0"),
        (lambda: layer_norm(residual(lj.lstm(H))), "layer_norm takes a cell made by"),
        (lambda: zoneout(lj.min_gru(H), 0.1), "zoneout takes a cell made by gated"),
        (lambda: layer_norm(lj.gru(H, reset_after=False)), "layer_norm takes a cell"),
        (lambda: project(lj.indrnn(H), 2), "the usual recurrent product"),
        (lambda: block_diagonal(lj.indrnn(H), 2), "the usual recurrent product"),
        (
            lambda: project(drop_connect(block_diagonal(lj.lstm(H), 2), 0.1), 2),
            "the usual recurrent product",
        ),
        (stack, "at least one cell"),
        (lambda: zoneout(lj.slstm(H), 0.1), "zoneout takes each array of the carry"),
        (lambda: clip(block_diagonal(lj.slstm(H), 2), 3.0), "clip takes each array"),
        (lambda: learned_initial_carry(lj.slstm(H)), "learned_initial_carry takes"),
    ],
)
def test_what_does_not_combine(make: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make()


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (project(lj.lstm(H), 5), "size=5 must be at least 1 and at most 4"),
        (block_diagonal(lj.lstm(H), 3), "heads=3 must divide the 4 hidden units"),
        (layer_norm(layer_norm(lj.lstm(H))), "has parameters 'layer_norm' already"),
        (
            stack(residual(lj.lstm(H)), lj.lstm(H)),
            "residual adds 3 inputs to 4 outputs",
        ),
    ],
)
def test_sizes_that_do_not_fit(cell: lj.Cell, reason: str) -> None:
    with pytest.raises(CellError, match=reason):
        cell.init(jax.random.key(0), INPUT)
