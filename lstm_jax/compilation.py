"""Compiled programs, kept for the next run of the command line."""

import contextlib
import os
import stat
import sys
from pathlib import Path
from typing import Any

import jax
from filelock import Timeout

from lstm_jax.data.cache import default_folder
from lstm_jax.locks import locked

_LARGEST = 2**30  # bytes of the folder; the programs unused for longest go first


def keep_compiled(folder: Path | None = None) -> None:
    """Lets jax read from the user's cache what it compiled in an earlier run.

    A program from the cache is executed, so the folder is its owner's alone: one that
    others may write is not used, with a line on stderr. What a user has set
    (`JAX_COMPILATION_CACHE_DIR`) stays. To be called before jax compiles.

    Args:
      folder: by default `compiled` in `lstm_jax.data.cache.default_folder`.
    """
    config: Any = jax.config  # whose options have no types
    if config.jax_compilation_cache_dir is not None:
        return
    folder = folder or default_folder() / "compiled"
    try:
        # Each by itself: `parents` would make the first as the umask says.
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        found = [folder.parent.stat(), folder.stat()]
    except OSError as error:
        print(
            f"{folder} cannot be made ({error.strerror}): programs are compiled anew "
            "each time; XDG_CACHE_HOME may name another folder",
            file=sys.stderr,
        )
        return
    others = any(f.st_mode & (stat.S_IWGRP | stat.S_IWOTH) for f in found)
    if others or (
        hasattr(os, "getuid") and any(f.st_uid != os.getuid() for f in found)
    ):
        print(
            f"{folder} or its parent can be written by others and is not used: take "
            "the right from them (chmod go-w), or name another folder in "
            "XDG_CACHE_HOME",
            file=sys.stderr,
        )
        return
    missing = _remove_unfinished(folder)
    if missing is not None:
        print(
            f"{folder} is on a disk without locks ({missing}) and not used, for two "
            "processes might write there at once: programs are compiled anew each "
            "time; XDG_CACHE_HOME may name another folder",
            file=sys.stderr,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _LARGEST)
    # Of what is kept; reading is faster from here on.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _remove_unfinished(folder: Path) -> str | None:
    """Remove programs whose writing was cut off: jax would read them for ever.

    Jax writes a program and then the time of its use, under this lock; what has no time
    is not whole.

    Returns:
      None, or why jax could not lock anything there.
    """
    # Another process is at it, or will be refused.
    with (
        contextlib.suppress(OSError, Timeout),
        locked(folder / ".lockfile", timeout=10.0) as missing,
    ):
        if missing is not None:
            return missing
        for path in folder.glob("*-cache"):
            name = path.name.removesuffix("-cache")
            if not path.with_name(f"{name}-atime").exists():
                path.unlink()
    return None
