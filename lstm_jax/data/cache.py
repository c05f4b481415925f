"""Arrays that are slow to make, kept in a file for the next run."""

import hashlib
import json
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lstm_jax.data.files import local_path

_CONTENTS = "__contents__"  # the array in a file that says what the file holds
_DAY = 24 * 60 * 60  # seconds


def cached(
    name: str,
    key: Mapping[str, Any],
    make: Callable[[], dict[str, np.ndarray]],
    folder: Path | None = None,
) -> dict[str, np.ndarray]:
    """The arrays that `make` returns, from the cache if they have been made before.

    The file is `<folder>/<name>-<digest of key>.npz`. It appears whole or not at all,
    however many processes write it and wherever they are stopped. One that is damaged
    is made again; where none can be written, the arrays are made anew each time. Either
    prints one line to stderr.

    Args:
      name: what the arrays are, for people who look into the folder.
      key: all that shapes the arrays, as JSON can hold it.
      make: makes the arrays, of anything but objects.
      folder: by default `$XDG_CACHE_HOME/lstm_jax` or `~/.cache/lstm_jax`.

    Raises:
      TypeError: the key does not fit into JSON.
      ValueError: the same of its numbers; or an array is one of objects.
    """
    folder = folder or default_folder()
    text = _canonical(key)
    path = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
    if (arrays := _load(path, text)) is not None:
        return arrays
    arrays = make()
    try:
        _store(path, text, arrays)
    except OSError as error:
        print(
            f"{path} cannot be written ({error.strerror}): the next run makes it "
            "again; XDG_CACHE_HOME may name another folder",
            file=sys.stderr,
        )
    return arrays


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/lstm_jax`, or `~/.cache/lstm_jax`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says to ignore a relative one.
    base = base if os.path.isabs(base) else local_path("~/.cache")
    return Path(base) / "lstm_jax"


def _canonical(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _load(path: Path, text: str) -> dict[str, np.ndarray] | None:
    """The arrays of a file; None if there is none or, with a message, if damaged."""
    try:
        file = path.open("rb")
    except OSError:
        return None  # if it is there and may not be read, writing it says more
    with file:
        try:
            return _check_and_read(file, text)
        except Exception as error:  # many kinds: damage can hit any part of the file
            reason = str(error).partition("\n")[0] or type(error).__name__
            print(f"{path} is damaged ({reason}): making it again", file=sys.stderr)
            return None


def _check_and_read(file: BinaryIO, text: str) -> dict[str, np.ndarray]:
    # NumPy alone would miss flipped bytes in an array's header that make it shorter.
    with zipfile.ZipFile(file) as archive:
        if bad := archive.testzip():
            raise ValueError(f"wrong checksum of {bad}")
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        contents = json.loads(str(arrays[_CONTENTS]))
        if _canonical(contents["key"]) != text:
            raise ValueError("another key made it")
        if {*contents["arrays"], _CONTENTS} != {*arrays.files}:
            raise ValueError("arrays are missing")
        return {name: arrays[name] for name in contents["arrays"]}


def _store(path: Path, text: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes the file under a temporary name of its own, then renames it.

    Raises:
      OSError: it cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_old_temporaries(path.parent)
    contents = json.dumps({"key": json.loads(text), "arrays": list(arrays)})
    # Readable by the user alone, as mkstemp makes it.
    handle, temporary = tempfile.mkstemp(".tmp", f"{path.name}.", path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for name, array in {_CONTENTS: np.array(contents), **arrays}.items():
                    member = zipfile.ZipInfo(f"{name}.npy")
                    with archive.open(member, "w", force_zip64=True) as stream:
                        # As np.savez does, which takes no array named "file".
                        np.lib.format.write_array(stream, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the name on no data
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _remove_old_temporaries(folder: Path) -> None:
    """Removes what killed processes left, but nothing that one may yet be writing."""
    for temporary in folder.glob("*.npz.*.tmp"):
        try:
            if time.time() - temporary.stat().st_mtime > _DAY:
                temporary.unlink()
        except OSError:
            pass  # another process was quicker, or another user's
