"""The second run of a program compiles nothing."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from lstm_jax.compilation import keep_compiled

keep_compiled()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x))(jnp.ones((8, 8)))
print(jax.config.jax_compilation_cache_dir)
print(hits.count("/jax/compilation_cache/cache_hits"))
"""


def start(cache: Path, **environment: str) -> tuple[Path, int, str]:
    """The folder, the programs read from it, and what went to stderr."""
    kept = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
        env={**kept, "XDG_CACHE_HOME": str(cache), **environment},
    )
    folder, hits = done.stdout.split()
    return Path(folder), int(hits), done.stderr


def test_a_second_run_reads_what_the_first_compiled(tmp_path: Path) -> None:
    folder, hits, _ = start(tmp_path)
    assert folder == tmp_path / "lstm_jax" / "compiled"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert hits == 0
    assert start(tmp_path)[1] > 0


def test_a_folder_that_others_may_write_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "lstm_jax" / "compiled"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    used, _, err = start(tmp_path)
    assert used == Path("None")
    assert err.count("\n") == 1
    assert f"{folder} or its parent can be written by others" in err
    assert list(folder.iterdir()) == []


def test_the_users_own_folder_stays(tmp_path: Path) -> None:
    own = str(tmp_path / "own")
    assert start(tmp_path, JAX_COMPILATION_CACHE_DIR=own)[0] == Path(own)
    assert not (tmp_path / "lstm_jax").exists()


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root may")
def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    _, _, err = start(tmp_path)
    assert "cannot be made" in err


@pytest.mark.slow
def test_a_program_that_was_not_written_to_its_end_is_written_again(
    tmp_path: Path,
) -> None:
    folder, _, _ = start(tmp_path)
    for path in folder.glob("*-cache"):
        path.write_bytes(b"")
        path.with_name(path.name.removesuffix("-cache") + "-atime").unlink()
    assert start(tmp_path)[1:] == (0, "")
    assert start(tmp_path)[1] > 0


def test_the_folder_above_is_private_too(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        folder, _, _ = start(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
