"""SIGTERM and Ctrl-C while a run trains: it ends where it can go on from."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from lstm_jax import processes

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def noted() -> Iterator[Callable[[], int | None]]:
    """Until the end, the first signal is noted and not acted upon; a second one is.

    In another thread than the main one, signals do what they did. Of several processes
    all note what one receives, as SIGTERM, and the same turn of asking tells them.

    Yields:
      A function that gives the number of the signal, or None.
    """
    if processes.several():
        with _forwarded():
            yield lambda: signal.SIGTERM if processes.stop_agreed() else None
        return
    received: list[int] = []
    before: dict[int, Any] = {}

    def restore() -> None:
        while before:
            number, handler = before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def note(number: int, frame: Any) -> None:
        received.append(number)
        restore()
        _say(b"ends after the steps under way; once more: at once\n")

    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            before[number] = signal.signal(number, note)
    try:
        yield lambda: received[0] if received else None
    finally:
        restore()


@contextlib.contextmanager
def _forwarded() -> Iterator[None]:
    """The first Ctrl-C is SIGTERM, of which jax tells all processes."""
    before = signal.getsignal(signal.SIGINT)

    def forward(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        _say(b"ends after the steps under way; once more: at once\n")
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGINT, forward)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def exit_at_once() -> None:
    """Lets SIGTERM and Ctrl-C end the program with one line, where it does not train.

    Not by an exception, which a callback of the interpreter may swallow.
    """

    def leave(number: int, frame: Any) -> None:
        _say(b"interrupted: the same command goes on\n")
        os._exit(128 + number)

    for number in _SIGNALS:
        signal.signal(number, leave)


def _say(line: bytes) -> None:
    """Writes to stderr; the signal may have ended whoever reads it, as it ends tee."""
    with contextlib.suppress(OSError):
        os.write(2, line)  # not print: the signal may have come within one
