"""Data sets of TFDS, such as IMDB and MNIST, read without TensorFlow."""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from lstm_jax.data.files import local_path
from lstm_jax.errors import UserError

_ELSEWHERE = "set TFDS_DATA_DIR (or data.tfds_dir of the config) to"


@runtime_checkable
class Examples(Protocol):
    """Random access to examples, dicts of arrays and bytes."""

    def __len__(self) -> int: ...
    def __getitem__(self, key: int, /) -> dict[str, Any]: ...
    def __getitems__(self, keys: Sequence[int], /) -> list[dict[str, Any]]: ...


class Source(NamedTuple):
    """One split of a prepared data set.

    Attributes:
      examples: the examples, images as the bytes of their PNG files, texts as UTF-8.
      version: the data set's version, such as "3.0.1".
      folder: where its files lie.
      size: how many examples there are.
    """

    examples: Examples
    version: str
    folder: Path
    size: int


def open_source(name: str, split: str, tfds_dir: str = "") -> Source:
    """A split of a data set, prepared by TFDS now if it has not been before.

    This is `tfds.data_source` taken apart, so that every way to fail has its message.

    Args:
      name: the data set's name in TFDS, such as "imdb_reviews".
      split: "train", or whatever TFDS understands: "train[:10%]".
      tfds_dir: the folder of TFDS's data sets; "" for that of the environment
        variable TFDS_DATA_DIR, or else ~/tensorflow_datasets.

    Raises:
      UserError: the set is not prepared and cannot be, is damaged, lies there in
        another file format, or has no such split; or array_record is not installed.
    """
    _check_installed(name)
    folder = tfds_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    builder = _builder(name, str(local_path(folder)))
    path = Path(builder.data_path)
    if not os.path.exists(path):  # which says no of a folder that may not be read
        _prepare(builder)
    examples = _examples(builder, split)
    return Source(examples, str(builder.version), path, len(examples))


def read_examples(source: Source, indices: Sequence[int]) -> list[dict[str, Any]]:
    """The examples of the indices: in one call, four times as fast as one by one.

    Raises:
      UserError: the files are damaged.
    """
    try:
        return source.examples.__getitems__(indices)
    except Exception as error:  # whatever the C++ reader makes of damaged bytes
        raise _damaged(source.folder, error, _unreadable(source.folder)) from error


def read_texts(
    source: Source, count: int | None = None
) -> tuple[list[str], Int[np.ndarray, " N"]]:
    """The texts and labels of a source, or of its first `count` examples.

    Raises:
      UserError: the files are damaged.
    """
    size = source.size if count is None else count
    texts, labels = [], np.empty(size, np.int32)
    for start in range(0, size, 1000):  # examples weigh more than their texts
        indices = range(start, min(start + 1000, size))
        for i, example in zip(indices, read_examples(source, indices), strict=True):
            texts.append(example["text"].decode("utf-8", errors="replace"))
            labels[i] = example["label"]
    return texts, labels


def _check_installed(name: str) -> None:
    """Raises a `UserError` without array_record, of which TFDS prints a banner."""
    try:
        # Here and not above: Windows and Intel Macs have no such package.
        from array_record.python import array_record_data_source  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{name} is read with the package array_record, which cannot be imported "
            f"({_first_line(error)}): pip install array_record; there is none for "
            "Windows and for Intel Macs, so use Linux there (WSL, a container)"
        ) from error


def _builder(name: str, folder: str) -> Any:
    """TFDS's object for the data set, which knows whether and how it lies there."""
    # Takes a second to import.
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError:
        raise UserError(f"TFDS has no data set {name}") from None
    except Exception as error:  # its parser of the descriptions, in the main
        raise _damaged(Path(folder) / name, error) from error


def _prepare(builder: Any) -> None:
    """Lets TFDS download and prepare the data set, with its progress."""
    import tensorflow_datasets as tfds

    missing = f"{builder.name} is not prepared in {builder.data_dir_root}"
    # Asked first: TFDS would find out after the download.
    if _has_images(builder) and importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"{missing}, and TFDS prepares it with TensorFlow: run pip install -e "
            f"'.[prepare]' in the checkout, or {_ELSEWHERE} a folder that holds it"
        )
    try:
        _check_network(builder)
        # TFDS prints, but stdout is for results.
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare(
                file_format="array_record",
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
    except Exception as error:  # of the network, the disk, or TFDS
        raise UserError(
            f"{missing} and cannot be now ({_first_line(error)}): {_ELSEWHERE} a "
            "folder that holds it, or run this once with a network"
        ) from error


def _check_network(builder: Any) -> None:
    """Asks for the data set's first file: without a network TFDS tries for minutes.

    Raises:
      ConnectionError: there is no answer.
    """
    # TFDS's own way to the network, proxies included.
    import requests

    # TFDS describes what it has downloaded in such files, and does not do so twice.
    downloads = Path(builder.data_dir_root) / "downloads" / builder.name
    if builder.url_infos and not any(downloads.rglob("*.INFO")):
        url = next(iter(builder.url_infos))
        try:
            requests.head(url, timeout=10)
        except requests.RequestException as error:
            raise ConnectionError(f"no answer from {url}") from error


def _examples(builder: Any, split: str) -> Examples:
    import tensorflow_datasets as tfds

    path, info = Path(builder.data_path), builder.info
    if not info.splits:
        raise _damaged(path, "no description of its splits")
    formats = sorted(form.value for form in info.available_file_formats())
    if "array_record" not in formats:
        raise UserError(
            f"{path} holds {' and '.join(formats)}, and only array_record is read "
            f"without TensorFlow: {_ELSEWHERE} another folder to prepare it in"
        )
    # Left as bytes: TFDS takes a third of a millisecond to decode an image, and warns
    # that OpenCV would be faster.
    decoders = {"image": tfds.decode.SkipDecoding()} if _has_images(builder) else None
    try:
        examples = builder.as_data_source(
            split, decoders=decoders, file_format="array_record"
        )
    except ValueError:
        raise UserError(
            f"{builder.name} has no split {split}: it has {', '.join(info.splits)}"
        ) from None
    for part in info.splits[split].file_instructions:
        file = Path(part.filename)
        try:
            _check_file(file, part.examples_in_shard)
        except Exception as error:  # whatever the C++ reader makes of it
            raise _damaged(path, error, file.name) from error
    return examples


def _check_file(path: Path, size: int) -> None:
    """Raises an error, of whatever kind, if a file does not hold `size` records."""
    from array_record.python.array_record_module import ArrayRecordReader

    # It opens a file cut short as one of 0 records.
    reader = ArrayRecordReader(str(path), options="readahead_buffer_size:0")
    whole, records = reader.ok(), reader.num_records()
    try:
        reader.close()
    except Exception as error:  # says what was wrong, though not always
        raise ValueError(str(error) or "cut short") from error
    if not whole:
        raise ValueError("cut short")
    if records != size:
        raise ValueError(f"{records} records, where dataset_info.json says {size}")


def _unreadable(folder: Path) -> str:
    """The first file with a record that cannot be read; "" if there is none."""
    from array_record.python.array_record_module import ArrayRecordReader

    for path in sorted(folder.glob("*.array_record*")):
        try:
            ArrayRecordReader(str(path)).read_all()
        except Exception:  # as above
            return path.name
    return ""


def _has_images(builder: Any) -> bool:
    import tensorflow_datasets as tfds

    features = builder.info.features
    return "image" in features and isinstance(features["image"], tfds.features.Image)


def _damaged(path: Path, error: Exception | str, file: str = "") -> UserError:
    """The error of a folder, with the file where one is known."""
    reason = f"{file}: {_first_line(error)}" if file else _first_line(error)
    return UserError(
        f"{path} is damaged or half prepared ({reason}): delete it, and TFDS will "
        f"prepare it anew, or {_ELSEWHERE} another folder"
    )


def _first_line(error: Exception | str) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
