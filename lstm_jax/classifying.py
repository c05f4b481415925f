"""A trained run gives labels to texts and images."""

import re
import reprlib
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from lstm_jax import devices
from lstm_jax.continuation import check_text
from lstm_jax.data import reviews
from lstm_jax.data.files import read_utf8
from lstm_jax.data.images import looks_inverted, read_png
from lstm_jax.data.reviews import UNKNOWN, Ragged
from lstm_jax.errors import UserError
from lstm_jax.prediction import Run
from lstm_jax.tasks.classification import predict_probabilities
from lstm_jax.tasks.classify_images import read_mnist, scaled
from lstm_jax.tasks.classify_text import encoded

BATCH = 64  # of texts, so that a long file needs little memory


class Answer(NamedTuple):
    """A label and its probability.

    Attributes:
      label: the likeliest class.
      probability: of that class.
      seen: a text's ids as the model sees them, decoded; "" of an image.
    """

    label: str
    probability: float
    seen: str


def check_words(run: Run, text: str) -> None:
    """Raise a `UserError` for a text that `classify_texts` refuses."""
    _encoded(run, [text], [text])


def classify_texts(run: Run, texts: Sequence[str]) -> Iterator[Answer]:
    """The label of each text, as a batch of them is done.

    Raises:
      UserError: a text is not UTF-8, or holds no word that the model knows.
    """
    assert run.vocabulary is not None
    mesh = devices.make_mesh(0, BATCH)
    for start in range(0, len(texts), BATCH):
        part = list(texts[start : start + BATCH])
        # Batches of one size compile once.
        padded = part + [""] * ((BATCH if len(texts) > 1 else 1) - len(part))
        ragged = _encoded(run, padded, part)
        examples = encoded(run.config, ragged, run.vocabulary.get_vocab_size())
        with jax.set_mesh(mesh):
            rows = np.asarray(predict_probabilities(run.model, run.params, examples))
        for ids, row in zip(examples["inputs"][: len(part)], rows, strict=False):
            yield _answer(run, row, reviews.decode(run.vocabulary, ids))


def classify_image(run: Run, path: str) -> Answer:
    """The digit of an image file, light on dark; says so if it seems not to be.

    Raises:
      UserError: there is no such image.
    """
    image = read_png(path)
    if looks_inverted(image):
        print(
            f"{path} is light around the digit, and the model reads light on dark: "
            "invert the image if the answer is wrong",
            file=sys.stderr,
        )
    return _of_image(run, scaled(image))


def classify_test_image(run: Run, index: int) -> tuple[Answer, str]:
    """The digit of an image of the test split, and what it truly is.

    Raises:
      UserError: the data set is not there, or has no such image.
    """
    arrays = read_mnist(run.config.data.tfds_dir)
    size = len(arrays["test_labels"])
    if not 0 <= index < size:
        raise UserError(f"--index={index}: the test split has images 0 to {size - 1}")
    answer = _of_image(run, scaled(arrays["test_images"][index]))
    return answer, run.labels[arrays["test_labels"][index]]


def read_lines(path: str) -> dict[int, str]:
    """The texts of a file by line number; empty lines are skipped.

    Raises:
      UserError: there is no such file, or it holds no UTF-8 text.
    """
    text = read_utf8(path, "--input_file takes a file with a text a line")
    # Not splitlines, which also splits at what is white space within a text.
    lines = enumerate(re.split(r"\r\n|\r|\n", text), start=1)
    texts = {number: line for number, line in lines if line.strip()}
    if not texts:
        raise UserError(f"{path} holds no text: give one a line")
    return texts


def _of_image(run: Run, image: Float[np.ndarray, "28 28"]) -> Answer:
    rows = predict_probabilities(run.model, run.params, {"inputs": image[None]})
    return _answer(run, np.asarray(rows)[0], "")


def _encoded(run: Run, texts: Sequence[str], written: Sequence[str]) -> Ragged:
    """The ids of texts, of which the first are what somebody wrote."""
    assert run.vocabulary is not None
    for text in written:
        check_text(text)
    ragged = reviews.encode_texts(run.vocabulary, texts)
    for i, text in enumerate(written):
        ids = ragged.ids[ragged.offsets[i] : ragged.offsets[i + 1]]
        if not (ids > UNKNOWN).any():
            raise UserError(f"{reprlib.repr(text)} holds no word that the model knows")
    return ragged


def _answer(
    run: Run, probabilities: Float[np.ndarray, " classes"], seen: str
) -> Answer:
    best = int(probabilities.argmax())
    return Answer(run.labels[best], float(probabilities[best]), seen)
