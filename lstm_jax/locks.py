"""Locks of files, and disks that have none."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

# What a file system answers that has no locks: a network's without a lock manager or
# mounted without them, a driver that does not have the call or this operation of it.
_MISSING = {
    *(errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL),
}


@contextlib.contextmanager
def locked(path: Path, timeout: float) -> Iterator[str | None]:
    """Hold the lock of a file, which dies with its owner.

    Args:
      path: The file; made if missing, for its owner alone.
      timeout: Seconds to wait for another process that holds it.

    Yields:
      None, or why nothing is locked: what a disk without locks answers.

    Raises:
      filelock.Timeout: Another process holds it.
      OSError: The file cannot be made or opened.
    """
    # Without locks the library would make do with a file that a kill leaves behind.
    lock = FileLock(path, timeout=timeout, mode=0o600, fallback_to_soft=False)
    missing = None
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock)
        except OSError as error:
            if error.errno not in _MISSING:
                raise
            missing = error.strerror
        yield missing
