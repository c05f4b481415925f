"""Several processes that train one run together, each on devices of its own.

All of them run the same program; the one with number 0 leads: it alone writes files,
beside checkpoints, and reports. Without `start` there is one process, and it leads.

They meet at a coordinator, which runs in process 0. The runtime ends a process whose
fellow is lost, but late and in the midst of a long report; a thread of each process
sees it before and says it in one line. Where the coordinator itself is lost the runtime
is quicker than any thread: what it reports is read by `_RELAY`, which says it first.
"""

import contextlib
import importlib.util
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
from jax._src import distributed  # its client has no public name; Orbax uses it too
from jax._src.cloud_tpu_init import running_in_cloud_tpu_vm
from jax.experimental import multihost_utils

from lstm_jax.errors import UserError

# Seconds without a sign of a process until it is taken for lost; the runtime's own,
# which count from a sign that may be half as old already.
_SILENCE, _RUNTIME_SILENCE = 30, 90
_PERIOD = 1.0  # seconds from sign to sign
_PATIENCE = 5  # seconds of waiting until it says so
_CONNECT = 120  # seconds until all have to be there
_EVER = 10**9  # milliseconds to wait for what a lost process would keep waiting
# What a scheduler sets, and its value where it began one process alone.
_SIGNS = {
    "SLURM_STEP_NUM_TASKS": "1",
    "OMPI_COMM_WORLD_SIZE": "1",
    "JAX_COORDINATOR_ADDRESS": "",
}
_ALONE = (
    f"not all processes came within {_CONNECT} seconds: start all of them, each with "
    "its own --process_id and a --coordinator=HOST:PORT that all of them reach"
)
_LOST = "{}; start all processes again, and the run goes on"
# Copies what a process writes to stderr, to its end.
_RELAY = """
import signal, sys
for number in signal.SIGINT, signal.SIGTERM:
    signal.signal(number, signal.SIG_IGN)
for line in sys.stdin.buffer:
    if sys.argv[1] and b"coordination service" in line:
        sys.stderr.write(f"error: {sys.argv[1]}\\n")
        sys.argv[1] = ""
    sys.stderr.buffer.write(line)
    sys.stderr.flush()
"""
_ALIVE, _FAILED = "lstm_jax/alive/", "lstm_jax/failed/"

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_turns = itertools.count()  # all processes meet at the same places in the same order
_questions = itertools.count(1)  # jax says yes at the first, if nobody has asked before
_ended = threading.Event()
_last_words = threading.Lock()


def expected() -> bool:
    """Whether the scheduler that began this process began others with it."""
    if any(os.environ.get(name, one) != one for name, one in _SIGNS.items()):
        return True
    # A pod or one host of it: jax asks the metadata server.
    if running_in_cloud_tpu_vm:
        return True
    # A pod of an indexed job, where jax can ask for the others.
    indexed = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= os.environ.keys()
    return indexed and importlib.util.find_spec("kubernetes") is not None


def start(coordinator: str | None, count: int | None, number: int | None) -> None:
    """Joins the other processes; to be called before jax computes.

    Args:
      coordinator: HOST:PORT, where process 0 is to listen.
      count: of the processes.
      number: of this one, from 0. All three None: as Slurm, Open MPI, Kubernetes or a
        TPU pod tells.

    Raises:
      UserError: they do not fit together, or the others cannot be found.
    """
    given = coordinator, count, number
    if None in given and given != (None, None, None):
        raise UserError(
            "--coordinator, --num_processes and --process_id belong together: give all "
            "of them, or --distributed alone and let the scheduler tell"
        )
    if count is not None and number is not None and not 0 <= number < count:
        raise UserError(
            f"--process_id={number} must be at least 0 and below "
            f"--num_processes={count}"
        )
    if coordinator is not None and not coordinator.rpartition(":")[2].isdecimal():
        raise UserError(f"--coordinator={coordinator} must be HOST:PORT")
    if coordinator is not None and number == 0:
        _check_port(int(coordinator.rpartition(":")[2]))
    waits = b"waiting for the other processes\n"
    timers = [
        threading.Timer(_PATIENCE, os.write, (2, waits)),
        # The runtime would abort with a long report.
        threading.Timer(_CONNECT, _end, (_ALONE, 2)),
    ]
    for timer in timers:
        timer.daemon = True
        timer.start()
    # A handler in Python would not run before they have met.
    before = {n: signal.signal(n, signal.SIG_DFL) for n in _SIGNALS}
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            number,
            initialization_timeout=2 * _CONNECT,
            heartbeat_timeout_seconds=_RUNTIME_SILENCE,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot join the other processes: {reason}") from None
    finally:
        for timer in timers:
            timer.cancel()
        # Not SIGTERM's: jax has its own from here on.
        signal.signal(signal.SIGINT, before[signal.SIGINT])
    if not leads():
        _relay_errors()
    threading.Thread(target=_watch, daemon=True).start()


def _check_port(port: int) -> None:
    """Refuses one that is in use: the runtime would crash."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("", port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"cannot listen at port {port} of --coordinator ({error}): name "
                "another one to all processes"
            ) from None


def _relay_errors() -> None:
    line = _LOST.format("process 0, where all meet, is lost")
    ours, theirs = os.pipe()
    os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", _RELAY, line],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, ours, 0)],
    )
    os.dup2(theirs, 2)
    os.close(ours)
    os.close(theirs)


def count() -> int:
    """How many processes there are."""
    return distributed.global_state.num_processes


def several() -> bool:
    """Whether there are other processes."""
    return count() > 1


def leads() -> bool:
    """Whether this process writes and reports."""
    return distributed.global_state.process_id == 0


def from_leader(value: Any) -> Any:
    """The value of process 0, what JSON can hold, in all processes; all wait."""
    if not several():
        return value
    client, key = distributed.global_state.client, f"lstm_jax/value/{next(_turns)}"
    assert client is not None
    if leads():
        client.key_value_set(key, json.dumps(value))
    return json.loads(client.blocking_key_value_get(key, _EVER))


def agree(what: str, value: str) -> None:
    """Waits for all processes, and finds that all have the same value.

    Raises:
      UserError: this one's differs from that of process 0.
    """
    if from_leader(value) != value:
        raise UserError(
            f"process {distributed.global_state.process_id} has another {what} than "
            "process 0: start all with the same command, version and files"
        )
    wait()


def wait() -> None:
    """Waits until all processes are here."""
    if several():
        client = distributed.global_state.client
        assert client is not None
        client.wait_at_barrier(f"lstm_jax/{next(_turns)}", _EVER)


@contextlib.contextmanager
def leader_first() -> Iterator[None]:
    """The others do it when process 0 has, and find what it has left."""
    if several():
        jax.devices()  # now: it waits for the others, and no longer than two minutes
    if not leads():
        wait()
    yield
    if leads():
        wait()


def stop_agreed() -> bool:
    """Whether a process got SIGTERM and all are to end here; all ask in turn."""
    return multihost_utils.reached_preemption_sync_point(next(_questions))


def finish() -> None:
    """Waits for all processes and leaves them, at the end of the program."""
    if several() and not _ended.is_set():
        wait()
        _ended.set()
        jax.distributed.shutdown()


def _end(message: str, code: int) -> NoReturn:
    """Ends this process and tells nobody."""
    os.write(2, f"error: {message}\n".encode())
    os._exit(code)


def fail(message: str, code: int) -> NoReturn:
    """Ends this process, of several, with a line; the others end with the same."""
    with _last_words:  # and not those of the watching thread after them
        os.write(2, f"error: {message}\n".encode())
        _ended.set()
        state = distributed.global_state
        with contextlib.suppress(RuntimeError):  # the coordinator may be what is lost
            if state.client is not None:
                state.client.key_value_set(
                    f"{_FAILED}{state.process_id}", json.dumps([message, code])
                )
        if leads():
            time.sleep(3 * _PERIOD)  # with this process the coordinator goes
        # Not sys.exit: it would wait for the others.
        os._exit(code)


def lost(reason: str) -> NoReturn:
    """Ends this process, as another one is lost."""
    fail(_LOST.format(reason), 1)


def connection_lost(reason: str) -> NoReturn:
    """As `lost`, unless the other one has said why it ended."""
    time.sleep(3 * _PERIOD)  # in which the watching thread reads it
    lost(reason)


def _watch() -> None:
    """Gives signs of this process, and ends it when another gives none any more."""
    state = distributed.global_state
    client, own = state.client, state.process_id
    assert client is not None
    last: dict[int, tuple[str, float]] = {}
    for turn in itertools.count():
        try:
            client.key_value_set(f"{_ALIVE}{own}", str(turn), allow_overwrite=True)
            signs = dict(client.key_value_dir_get(_ALIVE))
            failed = client.key_value_dir_get(_FAILED)
        except RuntimeError:
            if not _ended.is_set():
                lost("process 0, where all meet, is lost")
            return
        for name, said in failed:
            if not _ended.is_set():
                message, code = json.loads(said)
                _end(f"process {name.removeprefix(_FAILED)}: {message}", code)
        now = time.monotonic()
        for number in range(state.num_processes):
            sign = signs.get(f"{_ALIVE}{number}", "")
            if number not in last or last[number][0] != sign:
                last[number] = sign, now
            elif now - last[number][1] > _SILENCE and not _ended.is_set():
                lost(f"process {number} is lost: no sign of it for {_SILENCE} seconds")
        if _ended.wait(_PERIOD):
            return
