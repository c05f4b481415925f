"""Synthetic strings of brackets with a label for every sign, by the rules of this file.

The signs are brackets of three kinds and the letter x. A closing bracket is "right" if
it is of the kind of the innermost open bracket, which it then closes; else it is
"wrong" and closes nothing. Any other sign is labelled by its depth, the number of
brackets that are open behind it: "depth0" to "depth3".

    x       (       [       )       ]       x       )       )
    depth0  depth1  depth2  wrong   right   depth1  right   wrong

The sign alone says little: who gives each sign its commonest label is right in 43 % of
the cases. What decides is the stack of open brackets, so all that came before.

Every sign is drawn by itself: with probability 0.2 it is x, else an opening or a
closing bracket, one as likely as the other; at depth 3 no bracket opens. A closing
bracket is wrong with probability 0.4, and wherever no bracket is open.
"""

import random
from typing import NamedTuple

from lstm_jax.errors import UserError

KINDS = {"(": ")", "[": "]", "{": "}"}
DEEPEST = 3
LENGTHS = (8, 48)  # signs of a string
SIZES = {"train": 8000, "test": 1000}

_LETTER = 0.2
_WRONG = 0.4


class Tagged(NamedTuple):
    """Sequences of words, and the label of each word."""

    words: list[list[str]]
    labels: list[list[str]]


def brackets(split: str, seed: int = 0, size: int | None = None) -> Tagged:
    """Strings of a split, as lists of signs.

    Args:
      split: "train" or "test".
      seed: another seed draws other strings.
      size: strings; None: 8,000 of "train", 1,000 of "test".

    Raises:
      UserError: an unknown split, or a negative size.
    """
    if split not in SIZES:
        raise UserError(f"unknown split {split!r}: choose {' or '.join(SIZES)}")
    size = SIZES[split] if size is None else size
    if size < 0:
        raise UserError(f"size={size} must be at least 0")
    rng = random.Random(f"{split} {seed}")
    strings = [_string(rng) for _ in range(size)]
    return Tagged(strings, [tag_brackets(signs) for signs in strings])


def tag_brackets(signs: list[str]) -> list[str]:
    """The label of each sign.

    >>> tag_brackets(list("(])x"))
    ['depth1', 'wrong', 'right', 'depth0']
    """
    labels, closers = [], []  # what would close the open brackets, the innermost last
    for sign in signs:
        if sign in KINDS.values():
            right = bool(closers) and closers[-1] == sign
            if right:
                closers.pop()
            labels.append("right" if right else "wrong")
        else:
            if sign in KINDS:
                closers.append(KINDS[sign])
            labels.append(f"depth{len(closers)}")
    return labels


def _string(rng: random.Random) -> list[str]:
    signs, closers = [], []
    for _ in range(rng.randint(*LENGTHS)):
        if rng.random() < _LETTER:
            signs.append("x")
        elif len(closers) < DEEPEST and rng.random() < 0.5:
            signs.append(rng.choice(list(KINDS)))
            closers.append(KINDS[signs[-1]])
        elif closers and rng.random() >= _WRONG:
            signs.append(closers.pop())
        else:
            wrong = [c for c in KINDS.values() if closers[-1:] != [c]]
            signs.append(rng.choice(wrong))
    return signs
