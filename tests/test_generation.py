"""Tests of lstm_jax.generation."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import lstm_jax as lj
from lstm_jax.generation import continue_window
from lstm_jax.models import SequenceClassifier

pytestmark = pytest.mark.usefixtures("strict")

SIZE, VOCABULARY = 3, 11
WINDOW = jnp.array([4, 9, 2])
MODEL = SequenceClassifier((lj.simple_rnn(6),), VOCABULARY, VOCABULARY, 4)


def draw_params(seed: int = 2, scale: float = 1.0) -> Any:
    """Parameters whose greedy continuation of the window has five words, not one."""
    rng = np.random.default_rng(seed)
    window = jnp.zeros((1, SIZE), jnp.int32)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), window)["params"]
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype),
        shapes,
    )


def next_logits(params: Any, window: Any) -> np.ndarray:
    """The logits of one window."""
    return np.asarray(MODEL.apply({"params": params}, jnp.asarray([window])))[0]


def draw(params: Any, **options: Any) -> np.ndarray:
    return np.asarray(continue_window(MODEL, params, WINDOW, **options))


def first_words(params: Any, count: int, **options: Any) -> np.ndarray:
    """How often each word was drawn to follow the window, with a key a draw."""

    def one(key: Array) -> Array:
        return continue_window(MODEL, params, WINDOW, num_words=1, key=key, **options)[
            0
        ]

    words = jax.vmap(one)(jax.random.split(jax.random.key(5), count))
    return np.bincount(words, minlength=VOCABULARY)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(), dtype=np.float64)
    return weights / weights.sum()


def test_greedy_is_a_loop_of_model_calls() -> None:
    params = draw_params()
    window, words = WINDOW.tolist(), []
    for _ in range(12):
        words.append(int(np.argmax(next_logits(params, window))))
        window = [*window[1:], words[-1]]
    assert len(set(words)) > 3
    np.testing.assert_array_equal(draw(params, num_words=12), words)
    # A key changes nothing where no word is drawn.
    np.testing.assert_array_equal(
        draw(params, num_words=12, key=jax.random.key(1)), words
    )


def test_greedy_takes_the_first_of_equals() -> None:
    words = draw(draw_params(scale=0.0), num_words=4, key=jax.random.key(1))
    np.testing.assert_array_equal(words, 0)


def test_top_1_and_a_tiny_temperature_are_greedy() -> None:
    params = draw_params()
    greedy = draw(params, num_words=12)
    for seed in range(3):
        options = {"num_words": 12, "key": jax.random.key(seed)}
        top_1 = draw(params, temperature=5.0, top_k=1, **options)
        np.testing.assert_array_equal(top_1, greedy)
        cold = draw(params, temperature=1e-30, **options)
        np.testing.assert_array_equal(cold, greedy)


def p_value(got: Any, want: Any = None) -> float:
    """Of counts, and those to be expected; by default all are alike."""
    import scipy.stats  # seconds, which every process that collects tests would take

    return scipy.stats.chisquare(got, want).pvalue


@pytest.mark.parametrize(
    ("temperature", "top_k"), [(1.0, 0), (2.5, 0), (0.7, 4), (1.0, 100)]
)
def test_draws_follow_the_softmax(temperature: float, top_k: int) -> None:
    params = draw_params()
    logits = next_logits(params, WINDOW)
    order = np.argsort(-logits)
    likeliest = order[:top_k] if top_k else order
    counts = first_words(params, 4000, temperature=temperature, top_k=top_k)
    assert counts.sum() == 4000
    assert set(np.flatnonzero(counts)) <= set(likeliest)
    want = 4000 * softmax(logits[likeliest] / temperature)
    # The test needs about 5 expected draws of each; the rare words count as one.
    common = want >= 5
    got = counts[likeliest]
    got = [*got[common], got[~common].sum()]
    want = [*want[common], want[~common].sum()]
    if want[-1] == 0:
        got, want = got[:-1], want[:-1]
    assert len(want) >= 3
    assert p_value(got, want) > 1e-3


def test_each_word_is_drawn_anew() -> None:
    # Every word is as likely as any other, whatever came before it.
    params = draw_params(scale=0.0)
    words = draw(params, num_words=3000, temperature=1.0, key=jax.random.key(3))
    assert p_value(np.bincount(words)) > 1e-3
    pairs = np.bincount(words[:-1] * VOCABULARY + words[1:], minlength=VOCABULARY**2)
    assert p_value(pairs) > 1e-3


def test_each_draw_follows_the_window_before_it() -> None:
    params = draw_params(scale=2.0)
    words = draw(params, num_words=300, temperature=1.0, key=jax.random.key(3))
    text = np.concatenate([WINDOW, words])
    windows = np.lib.stride_tricks.sliding_window_view(text, SIZE)[:-1]
    logits = MODEL.apply({"params": params}, jnp.asarray(windows))
    likelihoods = np.log(np.apply_along_axis(softmax, 1, np.asarray(logits)))
    each = likelihoods[np.arange(len(words)), words]
    # What a draw from the model's own softmax gets: minus its entropy, on average.
    entropy = -(np.exp(likelihoods) * likelihoods).sum(1)
    spread = (np.exp(likelihoods) * likelihoods**2).sum(1) - entropy**2
    assert abs(each.sum() + entropy.sum()) < 4 * np.sqrt(spread.sum())
    others = likelihoods[np.arange(len(words)), np.roll(words, 1)]
    assert others.mean() < each.mean() - 1


def test_keys() -> None:
    params = draw_params()
    options = {"num_words": 20, "temperature": 2.0, "top_k": 5}
    first = draw(params, key=jax.random.key(0), **options)
    np.testing.assert_array_equal(draw(params, key=jax.random.key(0), **options), first)
    assert (draw(params, key=jax.random.key(1), **options) != first).any()


def test_one_compilation() -> None:
    traces = []

    class Counted(SequenceClassifier):
        def __call__(self, *inputs: Any, **options: Any) -> Array:
            traces.append(1)
            return super().__call__(*inputs, **options)

    model = Counted((lj.simple_rnn(6),), VOCABULARY, VOCABULARY, 4)
    for seed in range(3):
        continue_window(
            model,
            draw_params(seed),
            (WINDOW + seed) % VOCABULARY,
            num_words=5,
            temperature=0.5 * seed,
            key=jax.random.key(seed),
        )
        assert len(traces) == 1


def primitives(jaxpr: Any, inside: tuple[str, ...] = ()) -> Iterator[Any]:
    """Every primitive of a program, and what it stands in."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        yield name, inside, equation.params
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from primitives(inner, (*inside, name))


def test_one_loop_with_the_model_in_it_once() -> None:
    params = draw_params()

    def products(program: Any) -> list[tuple[str, ...]]:
        return [
            inside for name, inside, _ in primitives(program) if name == "dot_general"
        ]

    model_alone = jax.make_jaxpr(MODEL.apply)(
        {"params": params}, jnp.expand_dims(WINDOW, 0)
    )
    counts = {}
    for num_words in (2, 40):
        program = jax.make_jaxpr(
            lambda params, window, num_words=num_words: continue_window(
                MODEL, params, window, num_words=num_words
            )
        )(params, WINDOW)
        loops = [
            options["length"]
            for name, inside, options in primitives(program.jaxpr)
            if name == "scan" and "scan" not in inside
        ]
        assert loops == [num_words]
        assert all("scan" in inside for inside in products(program.jaxpr))
        counts[num_words] = len(products(program.jaxpr))
    assert counts[2] == counts[40] == len(products(model_alone.jaxpr)) >= 3
