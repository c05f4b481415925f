"""A label for an image, read row by row from the top."""

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt8

from lstm_jax.cells import Params
from lstm_jax.config import Config
from lstm_jax.data.cache import cached
from lstm_jax.data.fingerprint import source_key
from lstm_jax.data.images import read_images
from lstm_jax.data.sources import open_source
from lstm_jax.data.tables import hold_out
from lstm_jax.errors import UserError
from lstm_jax.model_config import make_classifier
from lstm_jax.tasks.classification import (
    classification,
    confusion_picture,
    take_rows,
)
from lstm_jax.tasks.task import LABELS_FILE, Examples, Sums, Task


def classify_images(config: Config) -> Task:
    """MNIST: 28 steps of 28 pixels, 0 to 1.

    Raises:
      UserError: the data or a field of the config is no use.
    """
    data = config.data
    if data.path != "tfds:mnist":
        raise UserError(f"data.path={data.path!r} is unknown: choose tfds:mnist")
    if not 0 <= data.shift < 28:
        raise UserError(f"data.shift={data.shift} must be from 0 to 27")
    arrays = read_mnist(data.tfds_dir)
    train, test = (
        (scaled(arrays[f"{split}_images"]), arrays[f"{split}_labels"])
        for split in ("train", "test")
    )
    names = [str(digit) for digit in range(10)]
    model = make_classifier(config.model, len(names), vocab_size=None)
    splits = {"test": test}
    if data.holdout:
        kept, held_out = hold_out(train[1], data.holdout, config.seed)
        splits = {"validation": take_rows(train, held_out), **splits}
        train = take_rows(train, kept)
    task = classification(model, train[0], train[1], splits)
    return task._replace(
        loss=_shifted(task.loss, data.shift) if data.shift else task.loss,
        files={
            **task.files,
            LABELS_FILE: json.dumps(names) + "\n",
        },
        pictures=confusion_picture(
            model, task.splits["test"], names, config.batch_size
        ),
    )


def read_mnist(tfds_dir: str) -> dict[str, np.ndarray]:
    """Images, 0 to 255, and labels of both splits of MNIST, decoded once.

    Raises:
      UserError: the data set is not there.
    """
    sources = {s: open_source("mnist", s, tfds_dir) for s in ("train", "test")}

    def decode() -> dict[str, np.ndarray]:
        arrays = {}
        for split, source in sources.items():
            images, labels = read_images(source)
            arrays |= {f"{split}_images": images, f"{split}_labels": labels}
        return arrays

    return cached("mnist", source_key(sources), decode)


def scaled(images: UInt8[np.ndarray, "*N 28 28"]) -> Float[np.ndarray, "*N 28 28"]:
    """Pixels from 0 to 1."""
    return (images / np.float32(255)).astype(np.float32)


def _shifted(loss: Callable[..., Any], pixels: int) -> Callable[..., Any]:
    """The loss, in training on images moved by up to `pixels` each way."""

    def shifted(
        params: Params,
        examples: Examples,
        weight: Float[Array, " B"],
        key: PRNGKeyArray | None,
        carry: PyTree,
    ) -> tuple[Sums, PyTree]:
        if key is not None:
            key, shift_key = jax.random.split(key)
            images = shift_images(shift_key, examples["inputs"], pixels)
            examples = examples | {"inputs": images}
        return loss(params, examples, weight, key, carry)

    return shifted


def shift_images(
    key: PRNGKeyArray, images: Float[Array, "B rows columns"], pixels: int
) -> Float[Array, "B rows columns"]:
    """Moves each image by its own draw, at most `pixels` in each direction."""
    batch, rows, columns = images.shape
    padded = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels)))
    starts = jax.random.randint(key, (batch, 2), 0, 2 * pixels + 1)

    def crop(
        image: Float[Array, "padded_rows padded_columns"], start: Array
    ) -> Float[Array, "rows columns"]:
        return jax.lax.dynamic_slice(image, start, (rows, columns))

    return jax.vmap(crop)(padded, starts)
