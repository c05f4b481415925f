"""What tells whether data is the same as before."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lstm_jax.data.sources import Source


def fingerprint(*arrays: np.ndarray) -> str:
    """SHA-256 of the contents, in hexadecimal."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def source_key(sources: Mapping[str, Source]) -> dict[str, Any]:
    """The key of a cache of what was read from the splits of a data set."""
    files = sorted(path for s in sources.values() for path in s.folder.glob("*record*"))
    return {
        "splits": {name: [s.version, s.size] for name, s in sources.items()},
        # Prepared anew, a file has another time.
        "files": {f.name: [f.stat().st_size, f.stat().st_mtime_ns] for f in files},
        # To be counted up when what is made of the files changes.
        "rules": 1,
    }
