"""Tests of lstm_jax.data.cache."""

import contextlib
import errno
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lstm_jax.data.cache import cached, default_folder

KEY = {"data": "imdb", "version": "1.0.0", "length": 80, "words": [1, 2]}


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "ids": rng.integers(0, 9, (30, 8), dtype=np.int32),
        "file": rng.integers(0, 256, (5, 4, 4), dtype=np.uint8),
        "mean": np.array(rng.normal()),
        "none": np.empty((0, 3), np.float32),
        "words": np.array(["the", "naïve", "日本"]),
        "bytes": np.array([b"the", "naïve".encode()]),
        "turned": rng.normal(size=(4, 3)).T,
    }


def forbidden() -> dict[str, np.ndarray]:
    raise AssertionError("made again")


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].shape == b[name].shape
        np.testing.assert_array_equal(a[name], b[name])


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_second_call_reads_what_the_first_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_same(cached("imdb", KEY, arrays, tmp_path), arrays())
    # The digest of the key with sorted names and no spaces: as long as this holds,
    # caches outlive changes of the code.
    assert only_file(tmp_path).name == "imdb-2bcde2b22a7c5d73.npz"
    assert_same(cached("imdb", KEY, forbidden, tmp_path), arrays())
    turned = dict(reversed(KEY.items())) | {"words": (1, 2)}
    assert_same(cached("imdb", turned, forbidden, tmp_path), arrays())
    assert capsys.readouterr() == ("", "")


def test_every_part_of_the_key_counts(tmp_path: Path) -> None:
    cached("imdb", KEY, arrays, tmp_path)
    for change in ({"length": 81}, {"length": "80"}, {"words": [2, 1]}, {"new": None}):
        value = np.array(len(list(tmp_path.iterdir())))
        made = cached("imdb", KEY | change, lambda v=value: {"a": v}, tmp_path)
        again = cached("imdb", KEY | change, forbidden, tmp_path)
        assert made["a"] == again["a"] == value
    assert_same(cached("imdb", KEY, forbidden, tmp_path), arrays())
    assert cached("mnist", KEY, lambda: {"a": value}, tmp_path)["a"] == value
    assert len(list(tmp_path.iterdir())) == 6


def test_the_user_alone_may_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    previous = os.umask(0)
    try:
        cached("imdb", KEY, arrays)
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "lstm_jax").stat().st_mode) == 0o700
    file = only_file(tmp_path / "lstm_jax")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with zipfile.ZipFile(file) as archive:
        assert {info.compress_type for info in archive.infolist()} == {0}


def test_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_folder() == Path("/caches/lstm_jax")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert default_folder() == Path("/home/me/.cache/lstm_jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path("/home/me/.cache/lstm_jax")


def rebuilt(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a rebuild, after which the file is good again."""
    assert_same(cached("imdb", KEY, arrays, folder), arrays())
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"{only_file(folder)} is damaged (")
    assert err.endswith("): making it again\n")
    assert_same(cached("imdb", KEY, forbidden, folder), arrays())
    assert capsys.readouterr() == ("", "")
    return err


def test_file_cut_short_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cached("imdb", KEY, arrays, tmp_path)
    path = only_file(tmp_path)
    whole = path.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        rebuilt(tmp_path, capsys)
        assert path.read_bytes() == whole


def test_no_flipped_byte_changes_an_array(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    cached("imdb", KEY, arrays, tmp_path)
    path = only_file(tmp_path)
    whole = path.read_bytes()
    repaired = 0
    for position in range(0, len(whole), 17):
        damaged = bytearray(whole)
        damaged[position] ^= rng.integers(1, 256)
        path.write_bytes(damaged)
        assert_same(cached("imdb", KEY, arrays, tmp_path), arrays())
        err = capsys.readouterr().err
        # Some bytes mean nothing, such as the archive's dates.
        assert (err.count("\n") == 1) == (path.read_bytes() == whole)
        repaired += path.read_bytes() == whole
    assert repaired > 0.8 * len(whole) / 17


def test_header_that_shortens_an_array_is_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cached("imdb", KEY, arrays, tmp_path)
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"(30, 8)", b"(20, 8)"))
    assert "wrong checksum of ids.npy" in rebuilt(tmp_path, capsys)


def test_file_of_another_key_or_without_an_array_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cached("imdb", KEY, arrays, tmp_path)
    path = only_file(tmp_path)
    whole = path.read_bytes()
    cached("imdb", KEY | {"length": 9}, arrays, tmp_path / "other")
    only_file(tmp_path / "other").replace(path)
    (tmp_path / "other").rmdir()
    assert "another key made it" in rebuilt(tmp_path, capsys)

    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    for missing in ("ids.npy", "__contents__.npy"):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                if name != missing:
                    archive.writestr(name, content)
        reason = "arrays are missing" if missing == "ids.npy" else "__contents__"
        assert reason in rebuilt(tmp_path, capsys)
    assert path.read_bytes() == whole


def test_pickled_objects_are_never_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable, tuple]:
            return pytest.fail, ("ran what the file says",)

    cached("imdb", KEY, arrays, tmp_path)
    path = only_file(tmp_path)
    with np.load(path) as good:
        contents = dict(good) | {"ids": np.array([Trap()], object)}
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in contents.items():
            with archive.open(f"{name}.npy", "w") as stream:
                np.lib.format.write_array(stream, array)
    assert "allow_pickle=False" in rebuilt(tmp_path, capsys)


def test_unfit_arguments_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        cached("imdb", KEY, lambda: {"a": np.array([None])}, tmp_path)
    with pytest.raises(TypeError):
        cached("imdb", {"path": tmp_path}, arrays, tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        cached("imdb", {"rate": float("nan")}, arrays, tmp_path)
    assert not any(tmp_path.iterdir())


def test_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert_same(cached("imdb", KEY, arrays, folder), arrays())
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith(f"{folder}/imdb-2bcde2b22a7c5d73.npz cannot be written (")


@pytest.mark.parametrize("stop", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_failed_write_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stop: BaseException,
) -> None:
    def fsync(_: int) -> None:
        assert only_file(tmp_path).name.endswith(".tmp")
        raise stop

    monkeypatch.setattr(os, "fsync", fsync)
    if isinstance(stop, OSError):
        assert_same(cached("imdb", KEY, arrays, tmp_path), arrays())
        assert "cannot be written (full): the next run" in capsys.readouterr().err
    else:
        with pytest.raises(KeyboardInterrupt):
            cached("imdb", KEY, arrays, tmp_path)
    assert not any(tmp_path.iterdir())


def test_old_temporaries_are_swept(tmp_path: Path) -> None:
    cached("imdb", KEY, arrays, tmp_path)
    made = only_file(tmp_path)
    old, new = (tmp_path / f"mnist-0.npz.{name}.tmp" for name in ("old", "new"))
    theirs = tmp_path / "notes.tmp"
    for path in (old, new, theirs):
        path.touch()
    for path, hours in ((old, 25), (new, 23), (theirs, 99), (made, 99)):
        then = time.time() - 3600 * hours
        os.utime(path, (then, then))
    cached("imdb", KEY | {"length": 1}, arrays, tmp_path)
    assert not old.exists()
    assert new.exists()
    assert theirs.exists()
    assert_same(cached("imdb", KEY, forbidden, tmp_path), arrays())


KILLED = """
import os, sys
from pathlib import Path
import numpy as np
from lstm_jax.data import cache

def fsync(_):
    print("writing", flush=True)
    sys.stdin.read()

os.fsync = fsync
cache.cached("imdb", {"a": 1}, lambda: {"x": np.arange(9)}, Path(sys.argv[1]))
"""


def test_killed_while_writing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    left = only_file(tmp_path)
    assert left.name.endswith(".tmp")
    made = cached("imdb", {"a": 1}, lambda: {"x": np.arange(5)}, tmp_path)
    assert made["x"].tolist() == [0, 1, 2, 3, 4]
    assert len(list(tmp_path.iterdir())) == 2
    again = cached("imdb", {"a": 1}, forbidden, tmp_path)
    assert again["x"].tolist() == [0, 1, 2, 3, 4]


def make_and_check(folder: Path, start: float, number: int) -> None:
    time.sleep(max(0.0, start - time.time()))
    for round_ in range(20):
        result = cached("imdb", {"a": round_}, arrays, folder)
        assert_same(result, arrays())
        if (round_ + number) % 3 == 0:  # make room for the next to write it
            with contextlib.suppress(FileNotFoundError):
                next(folder.glob("*.npz")).unlink()


def test_processes_at_once_do_no_harm(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    context = multiprocessing.get_context("spawn")
    start = time.time() + 2
    processes = [
        context.Process(target=make_and_check, args=(tmp_path, start, number))
        for number in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert not list(tmp_path.glob("*.tmp"))
    assert capfd.readouterr().err == ""
