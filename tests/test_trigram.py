"""Tests of benchmarks.trigram: the model that a language model has to beat."""

import collections

import numpy as np

from benchmarks import trigram
from lstm_jax.data.reviews import START

SIZE = 12


def draw_stream(length: int = 4000) -> np.ndarray:
    """Symbols that depend on the two before them, in texts of about 50."""
    rng = np.random.default_rng(0)
    stream = [START]
    while len(stream) < length:
        last, before = stream[-1], stream[-2] if len(stream) > 1 else START
        word = 2 + (last * 3 + before + int(rng.geometric(0.5))) % (SIZE - 2)
        stream.append(START if rng.random() < 0.02 and last != START else word)
    return np.array(stream, np.int32)


def test_probabilities_sum_to_one_in_every_context() -> None:
    orders = trigram.fit(draw_stream(400), SIZE)
    words = np.arange(1, SIZE)  # all but padding
    for u in range(1, SIZE):
        for v in range(1, SIZE):
            context = np.full_like(words, u), np.full_like(words, v)
            p = trigram.probabilities(orders, *context, words, SIZE)
            assert (p > 0).all()
            np.testing.assert_allclose(p.sum(), 1, rtol=1e-12)


def test_probability_is_the_formula() -> None:
    """Of one seen trigram, from counts made with dictionaries."""
    stream = draw_stream()
    orders = trigram.fit(stream, SIZE)
    triples = list(zip(*(a.tolist() for a in trigram.trigrams(stream)), strict=True))
    seen = collections.Counter(triples)
    pairs = collections.Counter((v, w) for _, v, w in seen)
    single = collections.Counter(w for _, w in pairs)

    def discount(counts: collections.Counter, count: int) -> float:
        n = [max(list(counts.values()).count(k), 1) for k in range(1, 5)]
        k = min(count, 3)
        y = n[0] / (n[0] + 2 * n[1])
        return min(max(k - (k + 1) * y * n[k] / n[k - 1], 0), k) if k else 0.0

    def level(counts: collections.Counter, gram: tuple, lower: float) -> float:
        rows = {g: c for g, c in counts.items() if g[:-1] == gram[:-1]}
        count = counts[gram]
        spare = sum(discount(counts, c) for c in rows.values())
        return (count - discount(counts, count) + spare * lower) / sum(rows.values())

    ones = collections.Counter({(w,): c for w, c in single.items()})
    for u, v, w in [triples[5], triples[100], max(seen, key=seen.__getitem__)]:
        p = level(ones, (w,), 1 / (SIZE - 1))
        p = level(pairs, (v, w), p)
        p = level(seen, (u, v, w), p)
        got = trigram.probabilities(
            orders, np.array([u]), np.array([v]), np.array([w]), SIZE
        )
        np.testing.assert_allclose(got, p, rtol=1e-12)


def test_no_context_reaches_over_the_start_of_a_text() -> None:
    u, v, w = trigram.trigrams(np.array([START, 5, 6, START, 7, 8]))
    assert u.tolist() == [START, START, 5, START, START]
    assert v.tolist() == [START, 5, 6, START, 7]
    assert w.tolist() == [5, 6, START, 7, 8]


def test_it_learns() -> None:
    stream = draw_stream(8000)
    orders = trigram.fit(stream[:7000], SIZE)
    p = trigram.probabilities(orders, *trigram.trigrams(stream[7000:]), SIZE)
    assert np.exp(-np.log(p).mean()) < 5.2  # the entropy of the draws is about e^1.5
