"""Small stand-ins for IMDB and MNIST, laid out as TFDS would, and where those lie."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from lstm_jax.data import sources

GOOD = ("wonderful", "fun", "superb", "liked", "moving", "Great", "a joy", "perfect")
BAD = ("awful", "dull", "waste", "disappointment", "boring", "Worst", "a mess", "poor")
FILLER = (
    *("the", "movie", "was", "and", "a", "film", "it", "of", "I", "actors", "didn't"),
    *("plot", "scene", "scenes.", "really", "'seen'", "this,", "café", "<br /><br />"),
)
# Three columns by five rows a digit, as on a pocket calculator.
GLYPHS = (
    *("111101101101111", "010010010010010", "111001111100111", "111001111001111"),
    *("101101111001001", "111100111001111", "111100111101111", "111001001001001"),
    *("111101111101111", "111101111001111"),
)


def imdb_texts(split: str, folder: str) -> tuple[list[str], np.ndarray]:
    """Reviews and their labels: 1 positive, 0 negative, -1 unsupervised."""
    return sources.read_texts(sources.open_source("imdb_reviews", split, folder))


def prepare_tiny_imdb(
    folder: Path, train: int = 64, test: int = 32, unsupervised: int = 16, seed: int = 0
) -> dict[str, tuple[list[str], np.ndarray]]:
    """Prepares reviews of 5 to 40 words, among them some that tell the label.

    Returns:
      For each split the texts and labels, in the order in which they are stored.
    """
    rng = np.random.default_rng(seed)
    splits = {}
    for split, size in _sizes(train=train, test=test, unsupervised=unsupervised):
        labels = np.arange(size) % 2
        rng.shuffle(labels)
        texts = [_review(rng, GOOD if label else BAD) for label in labels]
        hidden = split == "unsupervised"
        splits[split] = (texts, np.full(size, -1) if hidden else labels)
    _prepare(ImdbReviews(splits=splits, data_dir=folder, file_format="array_record"))
    return splits


def prepare_tiny_mnist(
    folder: Path, train: int = 100, test: int = 50, seed: int = 0
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Prepares images of 28 by 28 of digits in one font, shifted and noisy.

    Returns:
      For each split the images and labels, in the order in which they are stored.
    """
    rng = np.random.default_rng(seed)
    splits = {}
    for split, size in _sizes(train=train, test=test):
        labels = np.arange(size) % 10
        rng.shuffle(labels)
        images = [_digit(rng, int(label)) for label in labels]
        splits[split] = (np.array(images).reshape(-1, 28, 28), labels)
    _prepare(Mnist(splits=splits, data_dir=folder, file_format="array_record"))
    return splits


def real_dataset(name: str) -> str:
    """TFDS's folder if it holds the complete data set; else the test is skipped."""
    beside = Path(__file__).parents[2] / "shared" / "tfds"
    for folder in (os.environ.get("TFDS_DATA_DIR"), str(beside)):
        if folder and Path(folder, name).is_dir():
            return folder
    pytest.skip(f"no {name} in TFDS_DATA_DIR or {beside}")


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


class _Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes what it is given, in that order."""

    def __init__(self, *, splits: dict[str, Any], **kwargs: Any):
        self.given = splits
        super().__init__(**kwargs)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        del dl_manager
        return {split: self._generate_examples(split) for split in self.given}


class ImdbReviews(_Tiny, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="plain_text"),)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "text": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["neg", "pos"]),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _generate_examples(self, split: str) -> Iterator[tuple[int, Any]]:
        for i, (text, label) in enumerate(zip(*self.given[split], strict=True)):
            yield i, {"text": text, "label": int(label)}


class Mnist(_Tiny, skip_registration=True):
    VERSION = tfds.core.Version("3.0.1")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(28, 28, 1)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _generate_examples(self, split: str) -> Iterator[tuple[int, Any]]:
        for i, (image, label) in enumerate(zip(*self.given[split], strict=True)):
            # Given bytes, TFDS needs no TensorFlow to encode them.
            yield i, {"image": png(image), "label": int(label)}


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )


def _sizes(**sizes: int) -> Iterator[tuple[str, int]]:
    return ((split, size) for split, size in sizes.items() if size)


def _review(rng: np.random.Generator, telling: tuple[str, ...]) -> str:
    words = rng.choice(FILLER, rng.integers(4, 35)).tolist()
    for word in rng.choice(telling, rng.integers(1, 6)):
        words.insert(rng.integers(len(words) + 1), str(word))
    return " ".join(words)


def _digit(rng: np.random.Generator, label: int) -> np.ndarray:
    glyph = np.array([*GLYPHS[label]], np.uint8).reshape(5, 3)
    image = rng.integers(0, 20, (28, 28), np.uint8)
    row, column = rng.integers(2, 7), rng.integers(5, 12)
    strokes = np.kron(glyph, np.full((4, 4), rng.integers(150, 230), np.uint8))
    image[row : row + 20, column : column + 12] += strokes
    return image
