"""Checkpoints that are not what they were: never read, never deleted."""

import errno
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from orbax.checkpoint._src.metadata import checkpoint as orbax_metadata
from reference import assert_same_bits
from toy_runs import hashes, saved_state, toy_config, toy_task

from lstm_jax import checkpoints, manifest, reporting, training, workdirs
from lstm_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("fast_runs")

STEPS = (10, 20)
# Orbax's note that it has committed, which nothing reads.
UNREAD = "commit_success.txt"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    """One bit, anywhere."""
    content = bytearray(path.read_bytes())
    draw = random.Random(path.name)
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


WAYS: dict[str, Callable[[Path], None]] = {
    "truncated": truncate,
    "flipped": flip,
    "missing": Path.unlink,
}


def config_of(**fields: Any) -> Any:
    return toy_config(**{"num_steps": 20, "checkpoint.every": 10, **fields})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, fast_runs: Path) -> Path:
    workdir = tmp_path_factory.mktemp("finished") / "run"
    training.fit(config_of(), toy_task(), workdir)
    return workdir


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(
        path
        for path in checkpoint.rglob("*")
        if path.is_file() and path.stat().st_size and path.name != UNREAD
    )


@pytest.mark.parametrize("way", WAYS)
def test_every_file_of_a_checkpoint(finished: Path, tmp_path: Path, way: str) -> None:
    """Whichever is damaged, the checkpoint before is used."""
    names = [p.relative_to(finished) for p in files_of(finished / "checkpoints" / "20")]
    assert len(names) >= 8
    for number, name in enumerate(names):
        workdir = tmp_path / str(number)
        shutil.copytree(finished, workdir)
        WAYS[way](workdir / name)
        assert workdirs.answering_step(workdir, None) == 10, name
        with (
            checkpoints.open_checkpoints(workdir) as manager,
            pytest.raises(UserError, match=r"no checkpoint of step 20 .*: 10$"),
        ):
            checkpoints.restore_params(manager, 20)


def test_a_damaged_one_is_trained_again(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    damaged = workdir / "checkpoints" / "20"
    flip(max(files_of(damaged), key=lambda path: path.stat().st_size))
    before = hashes(damaged)
    result = training.fit(config_of(), toy_task(), workdir)
    err = capsys.readouterr().err
    assert err.count("checkpoints/20 is damaged (") == 1
    assert "going on from step 10" in err
    assert result["step"] == 20
    assert hashes(workdir / "checkpoints" / "damaged-20") == before
    assert_same_bits(
        saved_state(workdir, config_of(), toy_task()),
        saved_state(finished, config_of(), toy_task()),
    )
    # And once more: the name is taken.
    flip(workdir / "checkpoints" / "20" / "metrics" / "metrics")
    training.fit(config_of(), toy_task(), workdir)
    assert (workdir / "checkpoints" / "damaged-20-2").is_dir()


def test_each_reading_verifies(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the checkpoints are open, and no more of them than it takes."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    verified: list[str] = []
    problem = manifest.problem

    def noting(folder: Path) -> str | None:
        verified.append(folder.name)
        return problem(folder)

    monkeypatch.setattr(manifest, "problem", noting)
    with checkpoints.open_checkpoints(workdir, keep=2) as opened:
        assert checkpoints.latest_step(opened) == 20
        checkpoints.restore_params(opened, 20)
        assert verified == ["20", "10", "20", "20"]
        flip(max(files_of(workdir / "checkpoints" / "20"), key=os.path.getsize))
        assert checkpoints.latest_step(opened) == 10
        with pytest.raises(UserError, match=r"no checkpoint of step 20 .*: 10$"):
            checkpoints.restore_params(opened, 20)
        verified.clear()
        checkpoints.restore_params(opened, 10)
    assert verified == ["10"]
    verified.clear()
    with checkpoints.open_checkpoints(finished) as opened:
        assert verified == ["20"]
        assert checkpoints.best_step(opened, "all_loss") in STEPS
    assert verified == ["20", "20", "10"]


def test_none_is_whole(finished: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    for step in STEPS:
        truncate(files_of(workdir / "checkpoints" / str(step))[-1])
    before = hashes(workdir)
    for use in (
        lambda: training.fit(config_of(), toy_task(), workdir),
        lambda: workdirs.answering_step(workdir, None),
    ):
        with pytest.raises(UserError, match=r"no checkpoint in .* is whole, and none"):
            use()
    assert hashes(workdir) == before


def test_a_best_one_that_is_damaged(finished: Path, tmp_path: Path) -> None:
    """Another one answers."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    best = workdirs.answering_step(workdir, "all_loss")
    flip(workdir / "checkpoints" / str(best) / "metrics" / "metrics")
    (other,) = set(STEPS) - {best}
    assert workdirs.answering_step(workdir, "all_loss") == other


def test_a_manifest_that_names_files_outside(tmp_path: Path) -> None:
    outside, folder = tmp_path / "secret", tmp_path / "folder"
    folder.mkdir()
    outside.write_text("a")
    (folder / "inside").write_text("a")
    manifest.write(folder)
    assert manifest.problem(folder) is None
    path = folder / manifest.FILE
    for name in ("../secret", str(outside)):
        path.write_text(path.read_text().replace("inside", name))
        assert manifest.problem(folder) == "manifest.json names a file outside"
        path.write_text(path.read_text().replace(name, "inside"))
    for content in ("", "[]", '{"files": 1}', '{"files": {"inside": 1}}'):
        path.write_text(content)
        assert manifest.problem(folder) == "manifest.json is damaged"


def test_the_manifest_waits_for_what_orbax_writes_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = orbax_metadata._MetadataStoreImpl
    update = store.update

    def late(*arguments: Any, **options: Any) -> None:
        time.sleep(0.3)
        update(*arguments, **options)

    monkeypatch.setattr(store, "update", late)
    training.fit(config_of(num_steps=10), toy_task(), tmp_path / "run")
    assert manifest.problem(tmp_path / "run" / "checkpoints" / "10") is None


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told in one line; what was saved stays, and the run goes on from there."""
    workdir = tmp_path / "run"
    training.fit(config_of(num_steps=10), toy_task(), workdir)
    before = hashes(workdir / "checkpoints" / "10")
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(UserError, match=r"has 0.0 MB free and a checkpoint takes"):
            training.fit(config_of(), toy_task(), workdir)
    assert hashes(workdir / "checkpoints" / "10") == before
    # Found out only while it writes.
    monkeypatch.setattr(manifest, "write", refuse)
    with pytest.raises(UserError, match="No space left on device"):
        training.fit(config_of(), toy_task(), workdir)
    assert hashes(workdir / "checkpoints" / "10") == before
    monkeypatch.undo()
    training.fit(config_of(), toy_task(), workdir)
    assert workdirs.answering_step(workdir, None) == 20


def refuse(path: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_metrics_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "add_row", lambda out, row: refuse(tmp_path))
    with pytest.raises(
        UserError, match=r"cannot write to .* \(No space left on device"
    ):
        training.fit(config_of(), toy_task(), tmp_path / "run")
