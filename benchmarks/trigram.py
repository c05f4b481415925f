"""A trigram model on the split of `imdb_lm`: `python -m benchmarks.trigram`.

What a recurrent language model has to beat: an interpolated Kneser-Ney model of the
same symbols, trained on the same texts, its perplexity on the same held-out ones.

References:
  Chen and Goodman, An empirical study of smoothing techniques for language modeling,
  Computer Speech and Language 13 (1999): interpolated Kneser-Ney with three discounts
  an order, estimated from the counts of counts.
"""

import json
import time
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from configs import imdb_lm
from lstm_jax.data.reviews import START
from lstm_jax.data.streams import read_streams


class Order(NamedTuple):
    """Counts of one order: of n-grams, and of the contexts that they begin with.

    Attributes:
      grams: sorted keys of n-grams.
      counts: of each; distinct words before it, for all but the highest order.
      contexts: sorted keys of contexts.
      totals: sum of the counts of each context.
      spare: what discounting takes from each context.
    """

    grams: Int[np.ndarray, " grams"]
    counts: Float[np.ndarray, " grams"]
    contexts: Int[np.ndarray, " contexts"]
    totals: Float[np.ndarray, " contexts"]
    spare: Float[np.ndarray, " contexts"]
    discounts: Float[np.ndarray, " 4"]


def trigrams(
    stream: Int[np.ndarray, " symbols"],
) -> tuple[
    Int[np.ndarray, " rest"], Int[np.ndarray, " rest"], Int[np.ndarray, " rest"]
]:
    """For each symbol but the first: two before it, one before it, itself.

    No context reaches over the start of a text.
    """
    before, symbol = stream[:-1].astype(np.int64), stream[1:].astype(np.int64)
    earlier = np.concatenate([[START], before[:-1]])
    return np.where(before == START, START, earlier), before, symbol


def fit(stream: Int[np.ndarray, " symbols"], vocab_size: int) -> list[Order]:
    """Counts of the three orders, the lowest first."""
    u, v, w = trigrams(stream)
    size = vocab_size
    grams, counts = np.unique((u * size + v) * size + w, return_counts=True)
    orders = [_order(grams, counts, size)]
    for width in (2, 1):
        # Kneser-Ney: a lower order counts in how many contexts a word was seen.
        shorter, counts = np.unique(grams % size**width, return_counts=True)
        grams = shorter
        orders.insert(0, _order(grams, counts, size))
    return orders


def _order(
    grams: Int[np.ndarray, " grams"], counts: Int[np.ndarray, " grams"], size: int
) -> Order:
    n = [max(int((counts == k).sum()), 1) for k in range(1, 5)]
    y = n[0] / (n[0] + 2 * n[1])
    discounts = np.array(
        [0.0, *(k - (k + 1) * y * n[k] / n[k - 1] for k in range(1, 4))]
    )
    discounts = np.clip(discounts, 0.0, [0, 1, 2, 3])
    taken = discounts[np.minimum(counts, 3)]
    contexts, of_gram = np.unique(grams // size, return_inverse=True)
    totals = np.bincount(of_gram, counts)
    spare = np.bincount(of_gram, taken)
    return Order(grams, counts.astype(float), contexts, totals, spare, discounts)


def probabilities(
    orders: list[Order],
    u: Int[np.ndarray, " N"],
    v: Int[np.ndarray, " N"],
    w: Int[np.ndarray, " N"],
    vocab_size: int,
) -> Float[np.ndarray, " N"]:
    """p(w | u, v) of each triple."""
    size = vocab_size
    p = np.full(len(w), 1 / (size - 1))  # padding is no symbol of a text
    contexts = (np.zeros_like(v), v, u * size + v)
    for order, context in zip(orders, contexts, strict=True):
        count, _ = _look_up(order.grams, order.counts, context * size + w)
        total, known = _look_up(order.contexts, order.totals, context)
        spare, _ = _look_up(order.contexts, order.spare, context)
        taken = order.discounts[np.minimum(count, 3).astype(int)]
        seen = (count - taken + spare * p) / np.where(known, total, 1)
        p = np.where(known, seen, p)
    return p


def _look_up(
    keys: Int[np.ndarray, " K"],
    values: Float[np.ndarray, " K"],
    wanted: Int[np.ndarray, " N"],
) -> tuple[Float[np.ndarray, " N"], np.ndarray]:
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    known = keys[places] == wanted
    return np.where(known, values[places], 0.0), known


def main() -> None:
    """Prints the perplexity as one line of JSON."""
    begun = time.perf_counter()
    streams = read_streams(imdb_lm.get_config().data)
    size = streams.vocabulary.get_vocab_size()
    orders = fit(streams.train, size)
    p = probabilities(orders, *trigrams(streams.held_out), size)
    result = {
        "held_out_perplexity": float(np.exp(-np.mean(np.log(p)))),
        "symbols": len(streams.train),
        "held_out_symbols": len(p),
        "vocabulary": size,
        "seconds": time.perf_counter() - begun,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
