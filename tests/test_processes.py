"""Several processes train one run, and what happens when one is lost."""

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from process_groups import run_group
from reference import assert_close, assert_same_bits
from toy_runs import rows_of, saved_state

from benchmarks.groups import Ended
from benchmarks.lost import first_line
from lstm_jax import processes, workdirs
from lstm_jax.errors import UserError
from lstm_jax.tasks import make_task

# Parameters of 1024 entries and more, which are divided.
FIELDS: dict[str, Any] = {
    "batch_size": 8,
    "num_steps": 24,
    "model.cell": "simple_rnn",
    "model.num_layers": 1,
    "model.hidden_size": 32,
    "model.embedding_size": 16,
    "model.dropout": 0.5,
    "report.every": 3,
    "report.evaluate_every": 6,
    "checkpoint.every": 4,
    "checkpoint.keep": 100,
    "devices.fsdp": True,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "cache"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A run of two processes that nothing stopped."""
    workdir = tmp_path_factory.mktemp("processes") / "whole"
    assert_trained(run_group(2, workdir, cache, FIELDS), workdir)
    return workdir


def assert_trained(ended: list[Ended], workdir: Path) -> None:
    for process in ended:
        assert process.code == 0, process.err
    leader, *others = ended
    result = json.loads(leader.out.splitlines()[-1])
    assert result["step"] == FIELDS["num_steps"]
    assert "step 24/24" in leader.err
    for process in others:  # one reports
        assert "step" not in process.out + process.err
    assert [row["step"] for row in rows_of(workdir, "train")] == [*range(3, 25, 3)]


def state_of(workdir: Path, step: int | None = None) -> Any:
    config = workdirs.read_config(workdir)
    return saved_state(workdir, config, make_task(config), step)


@pytest.mark.slow
def test_one_process_and_two_and_four_are_equal(
    whole: Path, tmp_path: Path, cache: Path
) -> None:
    fields = FIELDS | {"devices.fsdp": False}
    expected = state_of(whole)
    for count in (1, 2, 4):
        workdir = tmp_path / str(count)
        assert_trained(run_group(count, workdir, cache, fields), workdir)
        assert_close(state_of(workdir), expected, 1e-5)
        for row, other in zip(rows_of(workdir), rows_of(whole), strict=True):
            assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)


def copy_until(step: int, whole: Path, workdir: Path) -> None:
    """A run as it was when that step's checkpoint was saved."""
    shutil.copytree(whole, workdir)
    for folder in (workdir / "checkpoints").iterdir():
        if int(folder.name) > step:
            shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 4])
def test_other_numbers_of_processes_go_on(
    count: int, whole: Path, tmp_path: Path, cache: Path
) -> None:
    workdir = tmp_path / "moved"
    copy_until(12, whole, workdir)
    ended = run_group(count, workdir, cache, FIELDS)
    assert_trained(ended, workdir)
    assert "going on from step 12" in ended[0].err
    assert_close(state_of(workdir), state_of(whole), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (1, 4), (4, 1)])
def test_a_run_goes_on_with_more_processes_and_with_fewer(
    before: int, after: int, whole: Path, tmp_path: Path, cache: Path
) -> None:
    workdir = tmp_path / "moved"
    fields = FIELDS | {"devices.fsdp": before > 1, "num_steps": 12}
    for process in run_group(before, workdir, cache, fields):
        assert process.code == 0, process.err
    assert_close(state_of(workdir), state_of(whole, 12), 1e-5)
    fields = FIELDS | {"devices.fsdp": after > 1}
    ended = run_group(after, workdir, cache, fields)
    assert "going on from step 12" in ended[0].err
    assert_trained(ended, workdir)
    assert_close(state_of(workdir), state_of(whole), 1e-5)


def lose(number: int, moment: str, workdir: Path, cache: Path) -> None:
    """Two processes train, of which one is killed; the other says so and ends."""
    ended = run_group(2, workdir, cache, FIELDS, (number, moment))
    victim, other = ended[number], ended[1 - number]
    assert victim.code == -9
    assert other.code not in (0, 2)
    assert other.seconds - victim.seconds < 60
    first = first_line(other)
    assert first.startswith("error: ")
    assert "lost" in first
    assert first.endswith("start all processes again, and the run goes on")


def test_a_killed_process_ends_the_other(tmp_path: Path, cache: Path) -> None:
    """As below, but sooner."""
    lose(1, "collective after 6", tmp_path / "killed", cache)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (1, "collective"),
        (0, "collective"),
        (1, "evaluation"),
        (1, "idle"),
        (0, "idle"),
    ],
)
def test_a_killed_process_ends_the_other_and_all_go_on(
    number: int, moment: str, whole: Path, tmp_path: Path, cache: Path
) -> None:
    workdir = tmp_path / "killed"
    lose(number, moment, workdir, cache)
    assert_trained(run_group(2, workdir, cache, FIELDS), workdir)
    assert_same_bits(state_of(workdir), state_of(whole))
    assert rows_of(workdir) == rows_of(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "line"),
    [
        ("raises", "RuntimeError: on purpose"),
        ("memory", "not enough memory: lower batch_size"),
    ],
)
def test_a_process_that_fails_ends_the_other(
    moment: str, line: str, tmp_path: Path, cache: Path
) -> None:
    code = 1 if moment == "raises" else 2
    leader, failed = run_group(2, tmp_path / "run", cache, FIELDS, (1, moment))
    assert (leader.code, failed.code) == (code, code)
    assert f"error: {line}" in failed.err
    assert first_line(leader).startswith(f"error: process 1: {line}")
    assert abs(leader.seconds - failed.seconds) < 15


@pytest.mark.slow
def test_numbers_that_are_not_finite(tmp_path: Path, cache: Path) -> None:
    fields = {"optimizer.name": "sgd", "optimizer.learning_rate": 1e38}
    workdir = tmp_path / "run"
    for process in run_group(2, workdir, cache, FIELDS | fields):
        assert process.code == 2, process.err
        assert "error: numbers are not finite at step" in process.err.replace(
            "error: process 1: ", "error: "
        ).replace("error: process 0: ", "error: ")
        assert "Traceback" not in process.err
    found = json.loads((workdir / "not_finite.json").read_text())
    assert len(found["indices"]) == FIELDS["batch_size"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["asked", "asked early"])
def test_a_signal_to_one_process_saves_all(
    moment: str, whole: Path, tmp_path: Path, cache: Path
) -> None:
    workdir = tmp_path / "asked"
    ended = run_group(2, workdir, cache, FIELDS, (1, moment))
    assert [process.code for process in ended] == [143, 143], ended
    lines = [process.err.splitlines()[-1] for process in ended]
    assert lines[0] == lines[1]
    assert lines[0].startswith("interrupted at step ")
    step = int(lines[0].split()[3].rstrip(","))
    assert 0 < step < FIELDS["num_steps"]
    ended = run_group(2, workdir, cache, FIELDS)
    assert f"going on from step {step}" in ended[0].err
    assert_trained(ended, workdir)
    assert_same_bits(state_of(workdir), state_of(whole))


@pytest.mark.slow
def test_processes_that_differ_are_refused(tmp_path: Path, cache: Path) -> None:
    workdir = tmp_path / "differing"
    different = ["--config.optimizer.learning_rate=0.5"]
    leader, other = run_group(2, workdir, cache, FIELDS, last=different)
    assert (leader.code, other.code) == (2, 2)
    assert (
        "error: process 1 has another config, data or model than process 0" in other.err
    )
    assert "error: process 1: process 1 has another config" in leader.err
    assert not workdir.exists()


@pytest.mark.slow
def test_a_batch_that_all_devices_do_not_divide(tmp_path: Path, cache: Path) -> None:
    ended = run_group(2, tmp_path / "odd", cache, FIELDS | {"batch_size": 7})
    for process in ended:
        assert process.code == 2
        assert "2 processes have 2 devices, and devices.count=0" in process.err
        assert "Traceback" not in process.err


@pytest.mark.slow
def test_slurm_tells_the_places(tmp_path: Path, cache: Path) -> None:
    workdir = tmp_path / "slurm"

    def of_slurm(number: int) -> dict[str, str]:
        return {
            "SLURM_JOB_ID": str(os.getpid()),  # from which jax takes a port
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_NTASKS": "2",
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_PROCID": str(number),
            "SLURM_LOCALID": str(number),
        }

    assert_trained(run_group(2, workdir, cache, FIELDS, scheduler=of_slurm), workdir)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (("host:1", None, 0), "belong together"),
        (("host:1", 2, 2), "--process_id=2 must be at least 0 and below"),
        (("host", 2, 0), "--coordinator=host must be HOST:PORT"),
    ],
)
def test_places_that_are_none(place: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        processes.start(*place)


def test_a_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen at port {port}"):
            processes.start(f"127.0.0.1:{port}", 2, 0)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        # jax could not ask Kubernetes without its package.
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, False),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, True),
    ],
)
def test_schedulers(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: bool
) -> None:
    for name in (
        "SLURM_STEP_NUM_TASKS",
        "OMPI_COMM_WORLD_SIZE",
        "KUBERNETES_SERVICE_HOST",
        "JOB_COMPLETION_INDEX",
        "JAX_COORDINATOR_ADDRESS",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes.expected() == expected
