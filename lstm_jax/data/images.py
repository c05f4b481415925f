"""Images of digits: those of a data set, and a user's own."""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import tqdm
from jaxtyping import Int, UInt8

from lstm_jax.data.files import local_path
from lstm_jax.data.sources import Source, read_examples
from lstm_jax.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

_SIDE = 28
_FAINT = 8  # of 255, less than which nobody sees
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
    """Return a user's image of a digit as a viewer shows it, grey, in MNIST's size.

    Nothing is inverted, though MNIST's digits are light on dark. What is transparent
    shows white, or black where that gives more contrast, as for white ink. An image is
    turned as its EXIF data says. Another size is averaged, not cut, on a square of
    white if the image is light at its edges, else of black.

    Raises:
      UserError: there is no such file, it is no image, or nothing is on it.
    """
    # Only who gives an image needs Pillow.
    from PIL import Image, ImageOps

    size = (_SIDE, _SIDE)
    place = local_path(path)
    if not place.is_file():
        raise UserError(f"no image file {path}: give a PNG file of a digit")
    try:
        with Image.open(place) as image:
            image.load()
            grey = _as_shown(ImageOps.exif_transpose(image))
        if grey.size != size:
            grey = ImageOps.contain(grey, size, Image.Resampling.BOX)
    except Exception as error:  # Pillow lets many kinds through from a damaged file
        raise UserError(
            f"{path} cannot be read as an image: give a PNG file of a digit"
        ) from error
    if _contrast(grey) < _FAINT:
        raise UserError(
            f"{path} is empty: nothing is seen at {_SIDE}x{_SIDE} pixels; give an "
            "image with a digit on it"
        )
    if grey.size != size:
        color = 255 if looks_inverted(np.array(grey)) else 0
        grey = ImageOps.pad(grey, size, Image.Resampling.BOX, color=color)
    return np.array(grey)


def _as_shown(image: "Image.Image") -> "Image.Image":
    """The image in grey, on a background where it is transparent."""
    from PIL import Image

    # Pillow would cut numbers of 16 bits off at 255, and forget which is transparent.
    if image.mode.startswith("I"):
        numbers = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        clear = image.info.get("transparency")
        grey = Image.fromarray((numbers // 257).astype(np.uint8))
        if clear is None:
            return grey
        image = Image.merge(
            "LA", (grey, Image.fromarray((numbers != clear).astype(np.uint8) * 255))
        )
    if not image.has_transparency_data:
        return image.convert("L")
    image = image.convert("RGBA")
    backgrounds = (Image.new("RGBA", image.size, name) for name in ("white", "black"))
    shown = [Image.alpha_composite(back, image).convert("L") for back in backgrounds]
    return max(shown, key=_contrast)  # the first, if they are alike


def _contrast(grey: "Image.Image") -> int:
    """From the darkest to the lightest place; 0 of an image without any."""
    pixels = np.asarray(grey)
    return int(pixels.max()) - int(pixels.min()) if pixels.size else 0


def looks_inverted(image: UInt8[np.ndarray, "rows columns"]) -> bool:
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
