"""Images of digits: those of a data set, and a user's own."""

import io
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tqdm
from jaxtyping import Int, UInt8

from lstm_jax.data.sources import Source, read_examples
from lstm_jax.errors import UserError

_SIDE = 28
_CHUNK = 1000  # examples that a thread reads and decodes at a time


def read_images(
    source: Source,
) -> tuple[UInt8[np.ndarray, "N 28 28"], Int[np.ndarray, " N"]]:
    """Decodes all images of a source like MNIST, with a progress bar on a terminal.

    Returns:
      The images, 0 black to 255 white, and their labels.

    Raises:
      UserError: the files are damaged, or an image has another size.
    """
    images = np.empty((source.size, _SIDE, _SIDE), np.uint8)
    labels = np.empty(source.size, np.int32)

    def decode(start: int) -> int:
        indices = range(start, min(start + _CHUNK, source.size))
        for i, example in zip(indices, read_examples(source, indices), strict=True):
            images[i] = _decode(example["image"], i, source)
            labels[i] = example["label"]
        return len(indices)

    # Threads, as a fork after jax has started can hang.
    pool = ThreadPoolExecutor(os.cpu_count())
    with tqdm.tqdm(
        total=source.size, desc="decoding", unit="image", leave=False, disable=None
    ) as bar:
        try:
            for done in pool.map(decode, range(0, source.size, _CHUNK)):
                bar.update(done)
        finally:
            pool.shutdown(cancel_futures=True)  # an interrupt waits for no more
    return images, labels


def read_png(path: str) -> UInt8[np.ndarray, "28 28"]:
    """A user's image of a digit, as grey and at the size of MNIST's.

    Digits are light on dark, as MNIST's are: nothing is inverted. What is transparent
    becomes black; another size is averaged, not cut, on a black square.

    Raises:
      UserError: there is no such file, or it is no image.
    """
    # Only who gives an image needs Pillow.
    from PIL import Image, ImageOps

    if not os.path.isfile(path):
        raise UserError(f"no image file {path}: give a PNG file of a digit")
    try:
        with Image.open(path) as image:
            image.load()
    except Exception as error:  # Pillow lets many kinds through from a damaged file
        raise UserError(
            f"{path} cannot be read as an image: give a PNG file of a digit"
        ) from error
    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    grey = image.convert("L")
    if grey.size != (_SIDE, _SIDE):
        size = (_SIDE, _SIDE)
        grey = ImageOps.pad(grey, size, Image.Resampling.BOX, color=0)
    return np.array(grey)


def looks_inverted(image: UInt8[np.ndarray, "28 28"]) -> bool:
    """Whether what surrounds the digit is light, as ink on paper has it."""
    edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    return bool(np.median(edge) > 127)


def _decode(png: bytes, index: int, source: Source) -> UInt8[np.ndarray, "28 28"]:
    from PIL import Image, PngImagePlugin

    try:
        # Image.open tries other formats and takes half as long again.
        image: Image.Image = PngImagePlugin.PngImageFile(io.BytesIO(png))
        if image.mode != "L":
            image = image.convert("L")
        pixels = image.tobytes()
    except Exception as error:  # as above
        raise UserError(f"{source.folder}: image {index} cannot be decoded") from error
    if image.size != (_SIDE, _SIDE):
        size = "x".join(map(str, image.size))
        raise UserError(
            f"{source.folder}: image {index} is {size}, not {_SIDE}x{_SIDE}"
        )
    return np.frombuffer(pixels, np.uint8).reshape(_SIDE, _SIDE)
