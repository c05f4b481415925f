"""What a checkpoint's folder held when it was written, to tell whether it still does.

Orbax reads flipped bits and truncated files of some kinds without a word.
"""

import contextlib
import hashlib
import json
from pathlib import Path

FILE = "manifest.json"
# Orbax notes in it, after all else is written, when that was; it reads the rest.
_TIMED, _TIME = "_CHECKPOINT_METADATA", "commit_timestamp_nsecs"


def write(folder: Path) -> None:
    """Writes the manifest: size and SHA-256 of every file of a folder."""
    files = {
        path.relative_to(folder).as_posix(): _describe(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / FILE
    }
    (folder / FILE).write_text(json.dumps({"files": files}, indent=1))


def problem(folder: Path) -> str | None:
    """What is wrong with a folder by its manifest, in a few words; None: nothing."""
    path = folder / FILE
    try:
        files = json.loads(path.read_text())["files"]
        for name, expected in files.items():
            path = folder / name
            if folder not in path.parents or ".." in Path(name).parts:
                return f"{FILE} names a file outside"
            found = _describe(path)
            if found["size"] != expected["size"]:
                return f"{name} has {found['size']} bytes, not {expected['size']}"
            if found != expected:
                return f"{name} has changed"
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(folder)} is missing"
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    except (AttributeError, KeyError, TypeError, ValueError):
        return f"{FILE} is damaged"
    return None


def _describe(path: Path) -> dict[str, int | str]:
    if path.name != _TIMED:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return {"size": file.tell(), "sha256": digest}
    content = path.read_bytes()
    with contextlib.suppress(TypeError, ValueError):  # or it has changed
        fields = {**json.loads(content), _TIME: None}
        content = json.dumps(fields, sort_keys=True).encode()
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
