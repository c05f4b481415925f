"""Tests of lstm_jax.data.images."""

import io
import struct
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny_datasets
from PIL import Image

from lstm_jax.data import images as images_module
from lstm_jax.data.images import looks_inverted, read_images, read_png
from lstm_jax.data.sources import Source, open_source
from lstm_jax.errors import UserError

RNG = np.random.default_rng(0)
DIGIT = RNG.integers(0, 256, (28, 28), np.uint8)


class Listed(list):
    """Examples in memory."""

    def __getitems__(self, keys: Sequence[int], /) -> list[dict]:
        return [self[key] for key in keys]


def listed(*pngs: bytes) -> Source:
    examples = Listed({"image": png, "label": i} for i, png in enumerate(pngs))
    return Source(examples, "3.0.1", Path("digits"), len(pngs))


def save(folder: Path, image: Image.Image, kind: str = "PNG") -> str:
    path = folder / "digit.png"
    image.save(path, kind)
    return str(path)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("tfds")
    return folder, tiny_datasets.prepare_tiny_mnist(folder, train=2345, test=7)


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_and_labels_are_those_written(
    digits: tuple[Path, dict], split: str
) -> None:
    folder, written = digits
    images, labels = read_images(open_source("mnist", split, str(folder)))
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(images, written[split][0])
    np.testing.assert_array_equal(labels, written[split][1])


def test_chunks_that_threads_finish_in_any_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(images_module, "_CHUNK", 3)
    given = RNG.integers(0, 256, (100, 28, 28), np.uint8)
    source = listed(*map(tiny_datasets.png, given))
    images, labels = read_images(source)
    np.testing.assert_array_equal(images, given)
    assert labels.tolist() == list(range(100))


def test_progress_is_shown_on_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = listed(*[tiny_datasets.png(DIGIT)] * 5)
    read_images(source)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    read_images(source)
    out, err = capsys.readouterr()
    assert out == ""
    assert "decoding: " in err
    assert "/5 " in err


def test_damaged_image_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "_CHUNK", 2)
    good = tiny_datasets.png(DIGIT)
    for bad in (b"", b"text", good[:10], good[:200], good.replace(b"IDAT", b"IDAX")):
        with pytest.raises(UserError, match=r"^digits: image 3 cannot be decoded$"):
            read_images(listed(good, good, good, bad, good))
    wide = tiny_datasets.png(np.zeros((28, 29), np.uint8))
    with pytest.raises(UserError, match=r"^digits: image 1 is 29x28, not 28x28$"):
        read_images(listed(good, wide))


def test_images_of_a_data_set_in_colour_become_grey() -> None:
    rgb = np.stack([DIGIT] * 3, axis=-1)
    images, _ = read_images(listed(tiny_datasets.png(rgb)))
    np.testing.assert_array_equal(images[0], DIGIT)


def test_real_digits() -> None:
    folder = tiny_datasets.real_dataset("mnist")
    images, labels = read_images(open_source("mnist", "test[:1500]", folder))
    assert labels[:10].tolist() == [2, 0, 4, 8, 7, 6, 0, 6, 3, 1]
    assert np.bincount(labels).min() > 100
    # Light on dark, in the middle.
    assert 30 < images.mean() < 37
    assert images[:, :2].mean() < 0.1 < 60 < images[:, 12:16, 12:16].mean()
    # Ones hold the least ink, noughts the most.
    ink = [images[labels == digit].mean() for digit in range(10)]
    assert np.argmin(ink) == 1
    assert np.argmax(ink) == 0


def grey_of(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601 luma."""
    return rgb @ np.array([0.299, 0.587, 0.114])


def test_png_of_the_right_kind_is_read_as_it_is(tmp_path: Path) -> None:
    read = read_png(save(tmp_path, Image.fromarray(DIGIT)))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, DIGIT)
    read[0, 0] = 1  # the caller's own


def test_every_mode_becomes_grey(tmp_path: Path) -> None:
    rgb = RNG.integers(0, 256, (28, 28, 3), np.uint8)
    read = read_png(save(tmp_path, Image.fromarray(rgb)))
    np.testing.assert_allclose(read, grey_of(rgb), atol=1)

    bits = DIGIT > 127
    read = read_png(save(tmp_path, Image.fromarray(bits)))
    np.testing.assert_array_equal(read, bits * 255)

    palette = Image.fromarray(DIGIT // 16 * 17).convert("P")
    read = read_png(save(tmp_path, palette))
    np.testing.assert_array_equal(read, DIGIT // 16 * 17)

    deep = RNG.integers(0, 65536, (28, 28), np.uint16)
    read = read_png(save(tmp_path, Image.fromarray(deep)))
    np.testing.assert_array_equal(read, deep // 257)

    read = read_png(save(tmp_path, Image.fromarray(DIGIT), "BMP"))
    np.testing.assert_array_equal(read, DIGIT)


# A seven, as alpha or as ink.
STROKES = np.zeros((28, 28), np.uint8)
STROKES[4:8, 8:20] = STROKES[8:24, 16:20] = 255


def drawn(ink: int) -> list[Image.Image]:
    """The seven in one grey on nothing, in every way that a file can say so."""
    alpha = Image.fromarray(STROKES)
    grey = Image.new("L", (28, 28), ink)
    palette = Image.fromarray((STROKES > 0).astype(np.uint8))
    palette.putpalette([90, 90, 90, ink, ink, ink])
    palette.info["transparency"] = 0
    other = 77  # a grey that is called transparent
    marked = np.where(STROKES, ink, other).astype(np.uint8)
    one = Image.fromarray(marked)
    one.info["transparency"] = other
    three = Image.merge("RGB", [Image.fromarray(marked)] * 3)
    three.info["transparency"] = (other,) * 3
    deep = Image.fromarray(marked.astype(np.uint16) * 257)
    deep.info["transparency"] = other * 257
    colours = Image.merge("RGBA", [grey, grey, grey, alpha])
    return [colours, Image.merge("LA", [grey, alpha]), palette, one, three, deep]


def test_what_is_transparent_shows_white_or_else_black(tmp_path: Path) -> None:
    for image in drawn(ink=0):
        path = tmp_path / "digit.png"
        image.save(path, transparency=image.info.get("transparency"))
        read = read_png(str(path))
        np.testing.assert_array_equal(read, 255 - STROKES, err_msg=image.mode)
        assert looks_inverted(read)
    for image in drawn(ink=255):
        image.save(path, transparency=image.info.get("transparency"))
        read = read_png(str(path))
        np.testing.assert_array_equal(read, STROKES, err_msg=image.mode)
    colours, *_ = drawn(ink=0)
    colours.save(tmp_path / "digit.webp", lossless=True)
    read = read_png(str(tmp_path / "digit.webp"))
    np.testing.assert_array_equal(read, 255 - STROKES)
    # Half of the ink shows half of what is behind it.
    alpha = RNG.integers(0, 256, (28, 28), np.uint8)
    both = np.stack([DIGIT // 4, alpha], axis=-1)
    read = read_png(save(tmp_path, Image.fromarray(both)))
    shown = DIGIT // 4 / 255 * alpha + (255 - alpha)
    np.testing.assert_allclose(read, shown, atol=1)


def test_kinds_of_files_are_shown_as_a_viewer_shows_them(tmp_path: Path) -> None:
    ink = Image.fromarray(255 - STROKES)
    for mode, kind in (("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "JPEG")):
        rgb = ink.convert("RGB")
        read = read_png(save(tmp_path, rgb.convert(mode), kind))
        np.testing.assert_allclose(read, 255 - STROKES, atol=25, err_msg=mode)
    for dtype in (np.int32, np.float32):
        scale = 257 if dtype is np.int32 else 1
        deep = Image.fromarray(STROKES.astype(dtype) * dtype(scale))
        read = read_png(save(tmp_path, deep, "TIFF"))
        np.testing.assert_array_equal(read, STROKES)
    # 6: turn it clockwise.
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("PNG", "JPEG"):
        path = tmp_path / f"turned.{kind}"
        ink.save(path, kind, exif=exif, quality=95)
        read = read_png(str(path))
        turned = np.rot90(255 - STROKES, -1)
        np.testing.assert_allclose(read, turned, atol=25)


def test_an_empty_image_is_refused(tmp_path: Path) -> None:
    empty = [
        Image.new(mode, (28, 28)) for mode in ("L", "1", "P", "RGBA", "LA", "I;16")
    ]
    white = [Image.new("L", (60, 40), 255), Image.new("RGBA", (9, 9), (0, 0, 0, 200))]
    paper = Image.fromarray(RNG.integers(250, 256, (99, 99), np.uint8))  # as scanned
    hair = Image.fromarray(
        RNG.integers(0, 256, (300, 2), np.uint8)
    )  # less than a pixel
    for image in [*empty, *white, paper, hair]:
        path = save(tmp_path, image)
        with pytest.raises(UserError) as error:
            read_png(path)
        assert str(error.value) in (
            f"{path} is empty: nothing is seen at 28x28 pixels; give an image with a "
            "digit on it",
            # Of the hair, by an older Pillow.
            f"{path} cannot be read as an image: give a PNG file of a digit",
        )


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 3), (10, 10)])
def test_other_sizes_are_averaged(tmp_path: Path, rows: int, columns: int) -> None:
    noisy = RNG.integers(0, 256, (28 * rows, 28 * columns), np.uint8)
    mean = noisy.reshape(28, rows, 28, columns).mean((1, 3))
    read = read_png(save(tmp_path, Image.fromarray(noisy)))
    np.testing.assert_allclose(read, mean, atol=1)


def test_oblong_image_keeps_its_proportions(tmp_path: Path) -> None:
    for background in (0, 255):  # that of the square is the image's own
        noisy = RNG.integers(0, 256, (56, 28), np.uint8)
        noisy[:2] = noisy[-2:] = noisy[:, :2] = noisy[:, -2:] = background
        read = read_png(save(tmp_path, Image.fromarray(noisy)))
        mean = noisy.reshape(28, 2, 14, 2).mean((1, 3))
        np.testing.assert_allclose(read[:, 7:21], mean, atol=1)
        assert (read[:, :7] == background).all()
        assert (read[:, 21:] == background).all()
        assert looks_inverted(read) == (background == 255)


def test_ink_on_paper_is_told_from_light_on_dark() -> None:
    digit = np.zeros((28, 28), np.uint8)
    digit[4:24, 10:18] = 200
    assert not looks_inverted(digit)
    assert looks_inverted(255 - digit)


def test_small_image_is_enlarged(tmp_path: Path) -> None:
    small = RNG.integers(0, 256, (14, 14), np.uint8)
    read = read_png(save(tmp_path, Image.fromarray(small)))
    np.testing.assert_array_equal(read, small.repeat(2, 0).repeat(2, 1))


def test_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(UserError) as error:
            read_png(str(path))
        assert str(error.value) == f"no image file {path}: give a PNG file of a digit"


def test_file_that_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "digit.png"
    good = tiny_datasets.png(DIGIT)
    # The header of an image of 10 gigapixels, which would fill the memory.
    header = b"IHDR" + struct.pack(">II", 100_000, 100_000) + good[24:29]
    bomb = good[:12] + header + struct.pack(">I", zlib.crc32(header)) + good[33:]
    for content in (b"", b"not an image\n", good[:300], bomb):
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            read_png(str(path))
        assert str(error.value) == (
            f"{path} cannot be read as an image: give a PNG file of a digit"
        )


def test_damaged_file_gives_an_image_or_one_line(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(DIGIT).convert("P").save(buffer, "PNG", transparency=3)
    whole = buffer.getvalue()
    path = tmp_path / "digit.png"
    refused = 0
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= RNG.integers(1, 256)
        path.write_bytes(damaged)
        try:
            assert read_png(str(path)).shape == (28, 28)
        except UserError:
            refused += 1
    assert refused > 100
