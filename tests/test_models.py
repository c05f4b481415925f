"""Tests of lstm_jax.models."""

import functools
import math
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jaxtyping import Array
from random_modules import (
    BATCH,
    HIDDEN,
    INPUT,
    LENGTHS,
    TIME,
    assert_close,
    draw_inputs,
    draw_like,
    draw_params,
)

import lstm_jax as lj
from lstm_jax.models import (
    Bidirectional,
    LanguageModel,
    Recurrent,
    SequenceClassifier,
    Stack,
)

pytestmark = pytest.mark.usefixtures("strict")


def draw_carry(cell: lj.Cell, params: Any, seed: int) -> Any:
    return draw_like(cell.initial_carry(params, BATCH), seed)


@pytest.mark.parametrize(
    ("cell", "reverse"),
    [(lj.lstm(HIDDEN), False), (lj.gru(HIDDEN, reset_after=False), True)],
    ids=["lstm", "gru_reverse"],
)
def test_recurrent_is_unroll(cell: lj.Cell, reverse: bool) -> None:
    module = Recurrent(cell, reverse=reverse)
    xs = draw_inputs()
    params = draw_params(module, xs)
    carry = draw_carry(cell, params["cell"], seed=2)
    rng = np.random.default_rng(3)
    options = {
        "mask": jnp.asarray(rng.random((BATCH, TIME)) < 0.7),
        "resets": jnp.asarray(rng.random((BATCH, TIME)) < 0.3),
    }
    weights = jnp.asarray(rng.normal(size=(BATCH, TIME, HIDDEN)), jnp.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def gradients_and_values(run: Any, *inputs: Any) -> Any:
        def loss(*inputs: Any) -> Any:
            final, ys = run(*inputs)
            return jnp.sum(weights * ys) + jnp.sum(final.h**2), (final, ys)

        return jax.grad(loss, (0, 1, 2), has_aux=True)(*inputs)

    def by_module(params: Any, xs: Array, carry: Any) -> Any:
        return module.apply({"params": params}, xs, carry, **options)

    def by_function(params: Any, xs: Array, carry: Any) -> Any:
        return lj.unroll(cell, params["cell"], xs, carry, reverse=reverse, **options)

    got = gradients_and_values(by_module, params, xs, carry)
    assert_close(got, gradients_and_values(by_function, params, xs, carry))
    assert np.abs(got[0][0]["cell"]["recurrent_kernel"]).max() > 0.1


@pytest.mark.parametrize("make", [Recurrent, Bidirectional])
def test_implementation_is_handed_on(make: Any) -> None:
    xs = draw_inputs()

    def program(cell: lj.Cell, implementation: Any) -> str:
        module = make(cell, implementation=implementation)
        params = draw_params(make(cell), xs)
        return str(jax.make_jaxpr(module.apply)({"params": params}, xs))

    # The fused path has a backward pass of its own.
    assert "custom_vjp" in program(lj.lstm(HIDDEN), "fused")
    assert "custom_vjp" not in program(lj.lstm(HIDDEN), "autodiff")
    with pytest.raises(ValueError, match="no gates"):
        program(lj.gru(HIDDEN, reset_after=False), "fused")


def test_recurrent_initialises_as_the_cell() -> None:
    cell = lj.lstm(HIDDEN)
    params = Recurrent(cell).init(jax.random.key(3), draw_inputs())["params"]["cell"]
    zero, one = np.zeros(HIDDEN), np.ones(HIDDEN)
    np.testing.assert_array_equal(params["bias"], np.r_[zero, one, zero, zero])
    limit = math.sqrt(6 / (INPUT + 4 * HIDDEN))
    assert 0.9 * limit < np.abs(params["kernel"]).max() <= limit
    product = params["recurrent_kernel"] @ params["recurrent_kernel"].T
    np.testing.assert_allclose(product, np.eye(HIDDEN), atol=1e-5)


def test_bidirectional_is_two_unrolls() -> None:
    cell = lj.lstm(HIDDEN)
    module = Bidirectional(cell)
    xs = draw_inputs()
    params = draw_params(module, xs)
    carry = tuple(draw_carry(cell, params["forward"]["cell"], i) for i in (5, 6))

    @jax.jit
    def both(params: Any, carry: Any) -> Any:
        module_result = module.apply({"params": params}, xs, carry, lengths=LENGTHS)
        (forward, forward_ys), (backward, backward_ys) = [
            lj.unroll(
                cell,
                params[name]["cell"],
                xs,
                carry[reverse],
                lengths=LENGTHS,
                reverse=reverse,
            )
            for name, reverse in (("forward", False), ("backward", True))
        ]
        ys = jnp.concatenate([forward_ys, backward_ys], -1)
        return module_result, ((forward, backward), ys)

    got, want = both(params, carry)
    assert_close(got, want)
    assert np.abs(got[1][0, :, :HIDDEN] - got[1][0, :, HIDDEN:]).max() > 0.1


@pytest.mark.parametrize("bidirectional", [False, True])
def test_stack_is_composition(bidirectional: bool) -> None:
    cells = lj.lstm(HIDDEN), lj.simple_rnn(HIDDEN + 2)
    # Deterministic is the default: the dropout must not act.
    module = Stack(cells, dropout=0.9, bidirectional=bidirectional)
    layer = Bidirectional if bidirectional else Recurrent
    xs = draw_inputs()
    params = draw_params(module, xs)
    shapes = jax.eval_shape(functools.partial(module.apply, {"params": params}), xs)
    carries = draw_like(shapes[0], seed=4)

    @jax.jit
    def both(params: Any, carries: Any) -> Any:
        ys, finals = xs, []
        for i, cell in enumerate(cells):
            variables = {"params": params[f"layer_{i}"]}
            final, ys = layer(cell).apply(variables, ys, carries[i], lengths=LENGTHS)
            finals.append(final)
        stacked = module.apply({"params": params}, xs, carries, lengths=LENGTHS)
        return stacked, (tuple(finals), ys)

    assert_close(*both(params, carries))


def test_stack_drops_between_layers_only() -> None:
    cells = (lj.simple_rnn(2 * HIDDEN),) * 3
    module = Stack(cells, dropout=0.4)
    xs = draw_inputs()
    params = draw_params(module, xs)

    @jax.jit
    def apply(key: Array) -> Any:
        (carries, ys), seen = module.apply(
            {"params": params},
            xs,
            deterministic=False,
            rngs={"dropout": key},
            capture_intermediates=True,
            mutable="intermediates",
        )
        seen = seen["intermediates"]
        assert {name for name in seen if "Dropout" in name} == {
            "Dropout_0",
            "Dropout_1",
        }
        dropped = [seen[f"Dropout_{i}"]["__call__"][0] for i in range(2)]
        # Each layer runs on the dropped outputs of the one below; the first on xs.
        below = [xs, *dropped]
        layers = [
            lj.unroll(cell, params[f"layer_{i}"]["cell"], below[i])
            for i, cell in enumerate(cells)
        ]
        return carries, ys, dropped, layers

    carries, ys, dropped, layers = apply(jax.random.key(0))
    assert_close(carries, tuple(carry for carry, _ in layers))
    assert_close(ys, layers[-1][1])
    masks = [np.asarray(values != 0) for values in dropped]
    for i, mask in enumerate(masks):
        assert_close(dropped[i], jnp.where(mask, layers[i][1] / 0.6, 0))
        assert 0.5 < mask.mean() < 0.7
    assert (masks[0] != masks[1]).any()
    np.testing.assert_array_equal(apply(jax.random.key(0))[1], ys)
    assert np.abs(apply(jax.random.key(1))[1] - ys).max() > 1e-3


def language_model() -> tuple[LanguageModel, Any, Array]:
    """A model of two layers, its parameters, and ids that differ within a row."""
    module = LanguageModel((lj.lstm(HIDDEN), lj.simple_rnn(HIDDEN + 1)), 9, 4)
    keys = jax.random.split(jax.random.key(7), BATCH)
    ids = jnp.stack([jax.random.permutation(key, 9)[:TIME] for key in keys])
    return module, draw_params(module, ids), ids


def test_language_model_step_by_step_is_the_full_pass() -> None:
    module, params, ids = language_model()
    apply = jax.jit(functools.partial(module.apply, {"params": params}))

    def step_by_step(forget_at: int | None) -> Any:
        carries, steps = None, []
        for t in range(TIME):
            carries = None if t == forget_at else carries
            carries, logits = apply(ids[:, t : t + 1], carries)
            steps.append(logits)
        return carries, jnp.concatenate(steps, 1)

    full = apply(ids)
    assert_close(full, step_by_step(forget_at=None))
    # An option reaches the layers: a reset forgets what came before it.
    resets = jnp.zeros((BATCH, TIME), bool).at[:, 3].set(True)
    reset = apply(ids, resets=resets)
    assert_close(reset, step_by_step(forget_at=3))
    assert np.abs(reset[1][:, 3:] - full[1][:, 3:]).max() > 1e-3


def test_language_model_is_causal() -> None:
    module, params, ids = language_model()

    def first_row(table: Array) -> Array:
        given = params | {"embedding": {"embedding": table}}
        return module.apply({"params": given}, ids[:1])[1][0]

    # No id comes twice in a row: a row of the table is one step's input.
    jacobian = jax.jit(jax.jacrev(first_row))(params["embedding"]["embedding"])
    sizes = np.abs(jacobian).sum((1, 3))[:, ids[0]]  # [output step, input step]
    later = np.triu(np.ones((TIME, TIME), bool), 1)
    np.testing.assert_array_equal(sizes[later], 0)
    assert (sizes[~later] > 0).all()


def test_language_model_dropout() -> None:
    # One layer: its only dropout is before the head.
    plain = LanguageModel((lj.lstm(HIDDEN),), 9, 4)
    module = LanguageModel((lj.lstm(HIDDEN),), 9, 4, dropout=0.5)
    ids = jax.random.randint(jax.random.key(2), (BATCH, TIME), 0, 9)
    params = draw_params(module, ids)

    @functools.partial(jax.jit, static_argnames=("module", "deterministic"))
    def logits(module: LanguageModel, key: Array | None, deterministic: bool) -> Array:
        rngs = {} if key is None else {"dropout": key}
        variables = {"params": params}
        return module.apply(variables, ids, deterministic=deterministic, rngs=rngs)[1]

    keys = jax.random.split(jax.random.key(0))
    without = logits(module, None, deterministic=True)
    np.testing.assert_array_equal(without, logits(plain, None, deterministic=True))
    first, second = (logits(module, key, deterministic=False) for key in keys)
    np.testing.assert_array_equal(first, logits(module, keys[0], deterministic=False))
    assert np.abs(first - second).max() > 1e-2
    assert np.abs(first - without).max() > 1e-2
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        logits(module, None, deterministic=False)


def noisy_cell(hidden_size: int) -> lj.Cell:
    """A cell whose outputs are its draws; zeros where it has none."""

    def gates(
        extras: Any, carry: lj.HiddenCarry, zx: Array, zh: Array, noise: Any
    ) -> tuple[lj.HiddenCarry, Array]:
        del extras
        y = jnp.zeros_like(carry.h) if noise is None else noise.step
        return lj.HiddenCarry(jnp.tanh(zx + zh)), y

    def noise(key: Array, params: Any, batch: int, time: int) -> lj.Noise:
        del params
        return lj.Noise(step=jax.random.normal(key, (batch, time, hidden_size)))

    return lj.gated(hidden_size, 1, gates, noise=noise)


@pytest.mark.parametrize("make", [Recurrent, Bidirectional])
def test_noise_comes_from_the_stream_dropout(make: Any) -> None:
    module, xs = make(noisy_cell(HIDDEN)), draw_inputs()
    variables = module.init(jax.random.key(0), xs)  # deterministic: needs no stream

    def draws(key: int | None, **options: Any) -> np.ndarray:
        rngs = {} if key is None else {"dropout": jax.random.key(key)}
        return np.asarray(module.apply(variables, xs, rngs=rngs, **options)[1])

    np.testing.assert_array_equal(draws(None), 0)
    np.testing.assert_array_equal(draws(0), 0)
    first = draws(0, deterministic=False)
    np.testing.assert_array_equal(first, draws(0, deterministic=False))
    # Rows, steps, units and directions, and every key: all draws differ, but for
    # the chance that two of them round to the same number.
    both = np.concatenate([first, draws(1, deterministic=False)])
    assert len(np.unique(both)) >= both.size - 3
    assert 0.7 < both.std() < 1.3
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        draws(None, deterministic=False)


def test_layers_draw_noise_of_their_own() -> None:
    xs = draw_inputs()
    module = Stack((noisy_cell(HIDDEN),) * 2)
    _, seen = module.apply(
        module.init(jax.random.key(0), xs),
        xs,
        deterministic=False,
        rngs={"dropout": jax.random.key(0)},
        capture_intermediates=True,
        mutable="intermediates",
    )
    seen = seen["intermediates"]
    draws = [np.asarray(seen[f"layer_{i}"]["__call__"][0][1]) for i in range(2)]
    assert len(np.unique(draws)) >= 2 * BATCH * TIME * HIDDEN - 3


@pytest.mark.slow
def test_nnx_values_and_gradients() -> None:
    linen = SequenceClassifier((lj.lstm(HIDDEN),), 7)
    xs = draw_inputs()
    params = draw_params(linen, xs)
    module = nnx.bridge.ToNNX(linen, rngs=nnx.Rngs(0)).lazy_init(xs)
    state = nnx.state(module, nnx.Param)
    assert jax.tree.structure(nnx.to_pure_dict(state)) == jax.tree.structure(params)
    nnx.replace_by_pure_dict(state, params)
    nnx.update(module, state)

    def loss(logits: Array) -> Array:
        return jnp.sum(jnp.sin(logits))

    def linen_loss(params: Any) -> Array:
        return loss(linen.apply({"params": params}, xs, lengths=LENGTHS))

    want, want_gradient = jax.value_and_grad(linen_loss)(params)
    got, gradient = nnx.value_and_grad(lambda m: loss(m(xs, lengths=LENGTHS)))(module)
    assert_close(got, want)
    assert_close(nnx.to_pure_dict(gradient), want_gradient)


def test_nnx_training() -> None:
    linen = SequenceClassifier((lj.simple_rnn(HIDDEN),), 3, dropout=0.1)
    xs, labels = draw_inputs(), jnp.array([0, 2, 1, 2])
    rngs = nnx.Rngs(0, dropout=1)
    module = nnx.bridge.ToNNX(linen, rngs=rngs).lazy_init(xs)
    with jax.numpy_dtype_promotion("standard"):  # Optax's own code needs it
        optimizer = nnx.Optimizer(module, optax.adam(0.05), wrt=nnx.Param)

        @nnx.jit
        def step(module: nnx.Module, optimizer: nnx.Optimizer) -> Array:
            def mean_loss(module: Any) -> Array:
                logits = module(xs, deterministic=False)
                return jnp.mean(
                    optax.softmax_cross_entropy_with_integer_labels(logits, labels)
                )

            loss, gradient = nnx.value_and_grad(mean_loss)(module)
            optimizer.update(module, gradient)
            return loss

        losses = [float(step(module, optimizer)) for _ in range(40)]
    assert losses[0] > 0.8
    assert losses[-1] < 0.4
    assert jnp.argmax(module(xs), -1).tolist() == labels.tolist()
