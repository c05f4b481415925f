"""Logistic regression on web traffic's bags of tokens: the score without any order.

`python -m benchmarks.bag_of_tokens`. A line is a vector over the vocabulary that the
recurrent network has, of counts or of 0 and 1. Both are fitted with several weights of
the L2 penalty on four fifths of the training lines; the weight that is best on the
last fifth is fitted once more on all of them, and scored on the test lines.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from lstm_jax.data.reviews import encode_texts, train_vocabulary
from lstm_jax.data.web_traffic import TOKENS, VOCABULARY_SIZE, Requests, web_traffic

VARIANTS = ("counts", "presence")
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1)


class Plane(NamedTuple):
    """A line is an attack where features @ weights + bias is positive."""

    weights: Float[np.ndarray, " V"]
    bias: float


def bags(
    train: Requests, test: Requests, variant: str
) -> tuple[Float[np.ndarray, "N V"], Float[np.ndarray, "M V"]]:
    """Features of both splits, with the vocabulary of the first."""
    vocabulary = train_vocabulary(train.texts, TOKENS, VOCABULARY_SIZE)

    def bag(split: Requests) -> Float[np.ndarray, "N V"]:
        ids, offsets = encode_texts(vocabulary, split.texts)
        counts = np.zeros((len(split.texts), VOCABULARY_SIZE), np.float32)
        np.add.at(counts, (np.repeat(np.arange(len(counts)), np.diff(offsets)), ids), 1)
        return counts if variant == "counts" else np.minimum(counts, 1)

    return bag(train), bag(test)


def attacks(split: Requests) -> Bool[np.ndarray, " N"]:
    """Which lines are attacks."""
    return np.asarray(split.labels) == "attack"


def fit(
    features: Float[np.ndarray, "N V"], targets: Bool[np.ndarray, " N"], penalty: float
) -> Plane:
    """The minimum of the mean cross-entropy plus `penalty` / 2 * |weights|^2.

    Newton's method, until the gradient is zero; the bias bears no penalty.
    """
    ones = np.ones((len(features), 1))
    inputs = np.concatenate([features, ones], axis=1, dtype=np.float64)
    penalties = np.append(np.full(features.shape[1], penalty), 0)
    plane = np.zeros(inputs.shape[1])
    for _ in range(50):
        probability = 1 / (1 + np.exp(-inputs @ plane))
        gradient = inputs.T @ (probability - targets) / len(inputs) + penalties * plane
        if np.abs(gradient).max() < 1e-8:
            break
        curvature = probability * (1 - probability) / len(inputs)
        hessian = (inputs.T * curvature) @ inputs + np.diag(penalties)
        plane = plane - np.linalg.solve(hessian, gradient)
    return Plane(plane[:-1], plane[-1])


def accuracy(
    plane: Plane, features: Float[np.ndarray, "N V"], targets: Bool[np.ndarray, " N"]
) -> float:
    """Share of the rows that are on their side of the plane."""
    return float(np.mean((features @ plane.weights + plane.bias > 0) == targets))


def main() -> None:
    """Prints a table in markdown."""
    train, test = web_traffic("train"), web_traffic("test")
    targets, test_targets = attacks(train), attacks(test)
    held_out = len(targets) // 5
    print("| features | L2 penalty | held-out part | train | test |")
    print("|---|---|---|---|---|")
    for variant in VARIANTS:
        features, test_features = bags(train, test, variant)
        part, part_targets = features[:-held_out], targets[:-held_out]
        score, penalty = max(
            (
                accuracy(
                    fit(part, part_targets, penalty),
                    features[-held_out:],
                    targets[-held_out:],
                ),
                penalty,
            )
            for penalty in PENALTIES
        )
        plane = fit(features, targets, penalty)
        print(
            f"| {variant} | {penalty:g} | {score:.2%} | "
            f"{accuracy(plane, features, targets):.2%} | "
            f"{accuracy(plane, test_features, test_targets):.2%} |"
        )


if __name__ == "__main__":
    main()
