"""Tests of SequenceClassifier and SequenceTagger."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from random_modules import (
    BATCH,
    HIDDEN,
    INPUT,
    LENGTHS,
    TIME,
    assert_close,
    draw_ids,
    draw_inputs,
    draw_params,
    draws,
    dropped_of,
    head,
    rnn_outputs,
)

import lstm_jax as lj
from lstm_jax.models import SequenceClassifier, SequenceTagger

pytestmark = pytest.mark.usefixtures("strict")


LSTM = lj.lstm(HIDDEN)


@functools.partial(jax.jit, static_argnames="reverse")
def lstm_outputs(params: Any, xs: Array, lengths: Array, reverse: bool) -> Array:
    return lj.unroll(LSTM, params, xs, lengths=lengths, reverse=reverse)[1]


def last_outputs(
    params: Any, xs: Array, lengths: Array, bidirectional: bool
) -> Float[np.ndarray, "B Y"]:
    """The last outputs in running order of a layer of LSTM cells; 0 for empty rows."""
    layer, parts = params["recurrent"]["layer_0"], []
    for reverse in (False, True) if bidirectional else (False,):
        part = layer["backward" if reverse else "forward"] if bidirectional else layer
        ys = np.asarray(lstm_outputs(part["cell"], xs, lengths, reverse))
        steps = [0 if reverse else length - 1 for length in lengths.tolist()]
        rows = [ys[row, step] for row, step in enumerate(steps)]
        parts.append(np.where(np.asarray(lengths)[:, None] > 0, rows, 0))
    return np.concatenate(parts, -1)


@pytest.mark.parametrize(
    "bidirectional", [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_classifier_reads_the_last_output(bidirectional: bool) -> None:
    module = SequenceClassifier((lj.lstm(HIDDEN),), 7, bidirectional=bidirectional)
    xs = draw_inputs()
    params = draw_params(module, xs)
    apply = jax.jit(functools.partial(module.apply, {"params": params}))
    full = jnp.full(BATCH, TIME)
    logits = apply(xs)
    assert_close(logits, head(params, last_outputs(params, xs, full, bidirectional)))
    assert_close(apply(xs, lengths=full), logits)
    ragged = apply(xs, lengths=LENGTHS)
    assert_close(ragged, head(params, last_outputs(params, xs, LENGTHS, bidirectional)))
    # An empty row gives zeros to the head; what stands in the padding is not read.
    assert_close(ragged[1], params["head"]["bias"])
    padding = np.arange(TIME)[None, :, None] >= np.asarray(LENGTHS)[:, None, None]
    filled = jnp.where(padding, jnp.nan, xs)
    np.testing.assert_array_equal(apply(filled, lengths=LENGTHS), ragged)


@pytest.mark.parametrize("embedding_size", [None, 3])
def test_classifier_reads_symbols(embedding_size: int | None) -> None:
    ids = draw_ids()
    module = SequenceClassifier(
        (lj.lstm(HIDDEN),), 7, vocab_size=11, embedding_size=embedding_size
    )
    params = draw_params(module, ids)
    if embedding_size is None:  # a symbol is the one number that it is
        assert set(params) == {"recurrent", "head"}
        xs = jnp.expand_dims(ids.astype(jnp.float32), -1)
    else:
        xs = params["embedding"]["embedding"][ids]
        assert xs.shape == (BATCH, TIME, 3)
    apply = jax.jit(functools.partial(module.apply, {"params": params}))
    logits = apply(ids, lengths=LENGTHS)
    assert_close(logits, head(params, last_outputs(params, xs, LENGTHS, False)))


POOLINGS = ("last", "mean", "max")


def pooled(
    ys: Any, lengths: Any, pooling: str, bidirectional: bool
) -> Float[np.ndarray, "B Y"]:
    """One vector a row, of its valid steps; zeros for an empty row."""
    ys, rows = np.asarray(ys, np.float64), []
    for row, length in zip(ys, np.asarray(lengths).tolist(), strict=True):
        steps = row[:length]
        if length == 0:
            rows.append(np.zeros(ys.shape[-1]))
        elif pooling == "mean":
            rows.append(steps.sum(0) / length)
        elif pooling == "max":
            rows.append(steps.max(0))
        elif bidirectional:
            half = ys.shape[-1] // 2
            rows.append(np.concatenate([steps[-1, :half], steps[0, half:]]))
        else:
            rows.append(steps[-1])
    return np.array(rows)


@pytest.mark.parametrize(
    ("pooling", "bidirectional"),
    [
        ("last", True),
        ("mean", False),
        pytest.param("max", True, marks=pytest.mark.slow),
    ],
)
def test_pooling_is_over_the_valid_steps(pooling: Any, bidirectional: bool) -> None:
    module = SequenceClassifier(
        (lj.simple_rnn(HIDDEN),), 7, bidirectional=bidirectional, pooling=pooling
    )
    xs = draw_inputs()
    params = draw_params(module, xs)

    @jax.jit  # with lengths as an argument: traced, so nothing refuses those past T
    def logits(xs: Array, lengths: Array) -> Array:
        return module.apply({"params": params}, xs, lengths=lengths)

    def expected(lengths: Array) -> np.ndarray:
        ys = rnn_outputs(params["recurrent"]["layer_0"], xs, lengths)
        return head(params, pooled(ys, lengths, pooling, bidirectional))

    got = logits(xs, LENGTHS)
    np.testing.assert_allclose(got, expected(LENGTHS), rtol=0, atol=1e-5)
    # The rows differ, and the empty one is the bias.
    assert np.abs(np.asarray(got)[0] - np.asarray(got)[2:]).max() > 0.1
    assert_close(got[1], params["head"]["bias"])
    padding = np.arange(TIME)[None, :, None] >= np.asarray(LENGTHS)[:, None, None]
    filled = jnp.asarray(np.where(padding, np.nan, xs).astype(np.float32))
    np.testing.assert_array_equal(logits(filled, LENGTHS), got)
    # No lengths, lengths of all steps and traced ones of more are the same.
    full = jnp.full(BATCH, TIME)
    want = expected(full)
    np.testing.assert_allclose(logits(xs, full), want, rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits(xs, full + 3), want, rtol=0, atol=1e-5)
    without = jax.jit(functools.partial(module.apply, {"params": params}))(xs)
    np.testing.assert_allclose(without, want, rtol=0, atol=1e-5)

    def loss(params: Any, xs: Array) -> Array:
        out = module.apply({"params": params}, xs, lengths=LENGTHS)
        return jnp.sum(jnp.sin(out))

    gradient, of_xs = jax.jit(jax.grad(loss, (0, 1)))(params, filled)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    np.testing.assert_array_equal(np.asarray(of_xs)[padding[..., 0]], 0)


def test_maximum_may_be_negative() -> None:
    """The zeros of masked steps are no part of the maximum."""
    cell = lj.simple_rnn(HIDDEN, activation=lambda z: -jnp.abs(jnp.sin(z)) - 0.1)
    module = SequenceClassifier((cell,), 2, pooling="max")
    xs = draw_inputs()
    params = draw_params(module, xs)
    layer = params["recurrent"]["layer_0"]
    ys = rnn_outputs(layer, xs, LENGTHS, lambda z: -np.abs(np.sin(z)) - 0.1)
    highest = pooled(ys, LENGTHS, "max", False)
    assert (highest[[0, 2, 3]] < 0).all()
    got = jax.jit(functools.partial(module.apply, {"params": params}))(
        xs, lengths=LENGTHS
    )
    np.testing.assert_allclose(got, head(params, highest), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("unchecked_types")  # the annotations ask for signed lengths
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_lengths_of_a_type_that_does_not_count_to_t(pooling: Any, dtype: Any) -> None:
    module = SequenceClassifier((lj.simple_rnn(1),), 2, pooling=pooling)
    xs = np.random.default_rng(0).normal(size=(3, 300, 1)).astype(np.float32)
    params = draw_params(module, jnp.asarray(xs))
    lengths = np.array([100, 0, jnp.iinfo(dtype).max])
    apply = jax.jit(functools.partial(module.apply, {"params": params}))
    got = apply(jnp.asarray(xs), lengths=jnp.asarray(lengths, dtype))
    ys = rnn_outputs(params["recurrent"]["layer_0"], xs, lengths)
    want = head(params, pooled(ys, lengths, pooling, False))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_sequences_of_no_steps(pooling: Any, bidirectional: bool) -> None:
    module = SequenceClassifier(
        (lj.simple_rnn(HIDDEN),), 7, bidirectional=bidirectional, pooling=pooling
    )
    params = draw_params(module, draw_inputs())
    bias = np.broadcast_to(params["head"]["bias"], (BATCH, 7))
    xs = jnp.zeros((BATCH, 0, INPUT))
    for options in ({}, {"lengths": jnp.zeros(BATCH, jnp.int32)}):
        got = jax.jit(functools.partial(module.apply, {"params": params}))(
            xs, **options
        )
        np.testing.assert_array_equal(got, bias)


def test_dense_layers() -> None:
    module = SequenceClassifier(
        (lj.lstm(HIDDEN),),
        7,
        dense=(6, 4),
        head_kernel_init=jax.nn.initializers.constant(2.0),
    )
    xs = draw_inputs()
    params = draw_params(module, xs)
    assert set(params) == {"recurrent", "dense_0", "dense_1", "head"}
    out = last_outputs(params, xs, jnp.full(BATCH, TIME), False)
    negative = 0
    for layer in (params["dense_0"], params["dense_1"]):
        out = out @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
        negative += (out < 0).sum()
        out = np.maximum(out, 0)
    assert negative > 0
    apply = jax.jit(lambda module, p: module.apply({"params": p}, xs), static_argnums=0)
    assert_close(apply(module, params), head(params, out))
    fresh = jax.jit(module.init)(jax.random.key(0), xs)["params"]
    for layer in ("dense_0", "dense_1"):
        assert jnp.unique(fresh[layer]["kernel"]).tolist() == [2]
        assert jnp.unique(fresh[layer]["bias"]).tolist() == [0]
    tanh = module.clone(dense_activation=jnp.tanh)
    assert np.abs(apply(tanh, params) - head(params, out)).max() > 0.01


def test_classifier_drops_before_the_head() -> None:
    module = SequenceClassifier((lj.lstm(HIDDEN),), 7, dropout=0.5)
    xs = draw_inputs()
    params = draw_params(module, xs)
    logits, seen = draws(module, params, xs)
    (dropped,) = dropped_of(seen)
    kept = np.asarray(dropped != 0)
    assert 0 < kept.sum() < kept.size
    last = last_outputs(params, xs, jnp.full(BATCH, TIME), False)
    assert_close(dropped, jnp.where(kept, 2 * last, 0))
    assert_close(logits, head(params, dropped))


def test_embedding_dropout_is_of_single_entries() -> None:
    ids = draw_ids()
    module = SequenceClassifier(
        (lj.simple_rnn(HIDDEN),), 7, 11, 8, embedding_dropout=0.4
    )
    params = draw_params(module, ids)
    logits, seen = draws(module, params, ids)
    (dropped,) = dropped_of(seen)
    kept = np.asarray(dropped != 0)
    embedded = params["embedding"]["embedding"][ids]
    assert_close(dropped, jnp.where(kept, embedded / 0.6, 0))
    assert 0.5 < kept.mean() < 0.7
    # Steps, rows and entries of their own.
    for axis in range(3):
        assert (kept != kept.take([0], axis)).any()
    ys = rnn_outputs(params["recurrent"]["layer_0"], dropped)
    np.testing.assert_allclose(logits, head(params, ys[:, -1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_input_dropout_is_one_mask_a_sequence(bidirectional: bool) -> None:
    module = SequenceClassifier(
        (lj.simple_rnn(8),) * 2, 7, input_dropout=0.4, bidirectional=bidirectional
    )
    shape = (BATCH, TIME, 8)
    xs = jnp.asarray(np.random.default_rng(3).normal(size=shape), jnp.float32)
    params = draw_params(module, xs)
    _, seen = draws(module, params, xs)
    assert dropped_of(seen) == []  # none but in the recurrent layers
    below = [xs, seen["recurrent"]["layer_0"]["__call__"][0][1]]
    masks = []
    for inputs, dropped in zip(below, dropped_of(seen["recurrent"]), strict=True):
        kept = np.asarray(dropped != 0)
        assert_close(dropped, jnp.where(kept, inputs / 0.6, 0))
        np.testing.assert_array_equal(kept, np.broadcast_to(kept[:, :1], kept.shape))
        mask = kept[:, 0]
        assert 0.3 < mask.mean() < 0.9
        assert (mask != mask[:1]).any()
        masks.append(mask)
    # The second layer's mask is its own.
    assert (masks[0] != masks[1][:, :8]).any()


def test_dense_dropout_follows_each_dense_layer() -> None:
    module = SequenceClassifier(
        (lj.simple_rnn(HIDDEN),), 7, dense=(20, 20), dense_dropout=0.5
    )
    xs = draw_inputs()
    params = draw_params(module, xs)
    logits, seen = draws(module, params, xs)
    first, second = dropped_of(seen)
    for name, dropped in (("dense_0", first), ("dense_1", second)):
        out = np.maximum(seen[name]["__call__"][0], 0)
        kept = np.asarray(dropped != 0)
        assert_close(dropped, jnp.where(kept, 2 * out, 0))
        assert 0 < kept.sum() < (out > 0).sum()
    below = np.asarray(first) @ np.asarray(params["dense_1"]["kernel"])
    want = below + np.asarray(params["dense_1"]["bias"])
    assert_close(seen["dense_1"]["__call__"][0], jnp.asarray(want))
    assert_close(logits, head(params, second))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_without_a_rate_there_is_no_dropout(bidirectional: bool) -> None:
    options = {"dense": (3,), "bidirectional": bidirectional}
    classifier = SequenceClassifier((lj.simple_rnn(HIDDEN),) * 2, 7, **options)
    tagger = SequenceTagger((lj.simple_rnn(HIDDEN),) * 2, 7)
    for module in (classifier, tagger):
        params = draw_params(module, draw_inputs())
        logits, seen = draws(module, params, draw_inputs())
        assert dropped_of(seen) == dropped_of(seen["recurrent"]) == []
        apply = jax.jit(functools.partial(module.apply, {"params": params}))
        assert_close(logits, apply(draw_inputs()))


def test_embedding_initialiser() -> None:
    module = SequenceClassifier(
        (), 7, 11, 3, embedding_init=jax.nn.initializers.constant(2.5)
    )
    ids = jnp.zeros((BATCH, TIME), jnp.int32)
    table = module.init(jax.random.key(0), ids)["params"]["embedding"]["embedding"]
    np.testing.assert_array_equal(table, np.full((11, 3), 2.5))


def test_classifier_head_initialisers() -> None:
    module = SequenceClassifier(
        (lj.lstm(HIDDEN),),
        7,
        head_kernel_init=jax.nn.initializers.constant(2.0),
        head_bias_init=jax.nn.initializers.constant(3.0),
    )
    init = jax.jit(module.init)
    params = init(jax.random.key(0), draw_inputs())["params"]["head"]
    np.testing.assert_array_equal(params["kernel"], np.full((HIDDEN, 7), 2.0))
    np.testing.assert_array_equal(params["bias"], np.full(7, 3.0))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_tagger(bidirectional: bool) -> None:
    module = SequenceTagger(
        (lj.simple_rnn(HIDDEN),), 7, 11, 3, bidirectional=bidirectional
    )
    ids = draw_ids()
    params = draw_params(module, ids)
    xs = params["embedding"]["embedding"][ids]

    def by_hand(lengths: Array | None) -> np.ndarray:
        return head(params, rnn_outputs(params["recurrent"]["layer_0"], xs, lengths))

    apply = jax.jit(functools.partial(module.apply, {"params": params}))
    np.testing.assert_allclose(apply(ids), by_hand(None), rtol=0, atol=1e-5)
    ragged = apply(ids, lengths=LENGTHS)
    valid = np.arange(TIME) < np.asarray(LENGTHS)[:, None]
    want = np.where(valid[..., None], by_hand(LENGTHS), 0)
    np.testing.assert_allclose(ragged, want, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(ragged)[~valid], 0)
    # Ids in the padding are not read.
    other = jnp.where(valid, ids, (ids + 5) % 11)
    np.testing.assert_array_equal(apply(other, lengths=LENGTHS), ragged)


def test_tagger_of_vectors_and_its_dropout() -> None:
    module = SequenceTagger((lj.simple_rnn(HIDDEN),) * 2, 7, dropout=0.5)
    xs = draw_inputs()
    params = draw_params(module, xs)
    logits, seen = draws(module, params, xs)
    (last,), (between,) = dropped_of(seen), dropped_of(seen["recurrent"])
    ys = [seen["recurrent"][f"layer_{i}"]["__call__"][0][1] for i in (0, 1)]
    for out, dropped in zip(ys, (between, last), strict=True):
        kept = np.asarray(dropped != 0)
        assert_close(dropped, jnp.where(kept, 2 * out, 0))
        assert 0.3 < kept.mean() < 0.7
    assert_close(logits, head(params, last))
