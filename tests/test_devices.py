"""Which devices a run uses, and that it keeps them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from command_runs import assert_user_error, run_process
from toy_runs import toy_config, toy_task

from lstm_jax import devices, training, workdirs
from lstm_jax.errors import UserError


@pytest.mark.parametrize(
    ("batch_size", "available", "count"),
    [
        (128, 1, 1),
        (128, 2, 2),
        (128, 3, 2),
        (128, 64, 8),
        (96, 64, 6),
        (33, 2, 1),
        (31, 2, 1),
        (32, 2, 2),
        (1, 8, 1),
    ],
)
def test_automatic_count(batch_size: int, available: int, count: int) -> None:
    assert devices.automatic_count(batch_size, available) == count


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({}, 8),
        ({"own": "0::/a/b\n", "a/b/cpu.max": "300000 100000\n"}, 3),
        ({"own": "0::/a/b\n", "a/cpu.max": "200000 100000\n"}, 2),
        ({"own": "0::/a/b\n", "c/cpu.max": "200000 100000\n"}, 8),
        (
            {
                "own": "7:memory:/c\n4:cpu,cpuacct:/a\n",
                "cpu/a/cpu.cfs_quota_us": "400000\n",
                "cpu/a/cpu.cfs_period_us": "100000\n",
                "cpu/c/cpu.cfs_quota_us": "100000\n",
                "cpu/c/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "9900000 100000\n"}, 8),
        ({"cpu.max": "?"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_allowed_cpus(
    tmp_path: Path, monkeypatch: Any, files: dict[str, str], count: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert devices.allowed_cpus(tmp_path, tmp_path / "own") == count


@pytest.mark.parametrize(
    ("count", "batch_size", "message"),
    [
        (3, 32, "devices.count=3 must divide batch_size=32 "),
        (-1, 32, "devices.count=-1 must divide"),
        (8, 32, f"devices.count=8 and there are {len(jax.devices())}: ask for fewer"),
    ],
)
def test_counts_that_cannot_be(count: int, batch_size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        devices.make_mesh(count, batch_size)


@pytest.mark.usefixtures("fast_runs")
def test_a_run_keeps_its_devices(tmp_path: Path) -> None:
    def stored() -> int:
        return json.loads((tmp_path / "config.json").read_text())["devices"]["count"]

    task = toy_task()
    training.fit(toy_config(num_steps=4, **{"devices.count": 2}), task, tmp_path)
    assert stored() == 2
    training.fit(toy_config(num_steps=8), task, tmp_path)
    assert stored() == 2
    training.fit(toy_config(num_steps=12, **{"devices.count": 4}), task, tmp_path)
    assert stored() == 4


@pytest.mark.usefixtures("fast_runs")
def test_a_run_goes_on_with_fewer_devices(tmp_path: Path, capsys: Any) -> None:
    task = toy_task()
    training.fit(toy_config(num_steps=4, **{"devices.count": 2}), task, tmp_path)
    path = tmp_path / "config.json"
    # As if it had been on a larger machine.
    path.write_text(path.read_text().replace('"count": 2', '"count": 64'))
    training.fit(toy_config(num_steps=8), task, tmp_path)
    assert "was on 64 devices and goes on with others" in capsys.readouterr().err
    assert json.loads(path.read_text())["devices"]["count"] == 1
    # A run of a version that knew no devices was on one.
    fields = json.loads(path.read_text())
    del fields["devices"]
    path.write_text(json.dumps(fields))
    assert workdirs.stored_count(tmp_path) == 1
    assert workdirs.stored_count(tmp_path / "nowhere") == 0


def test_another_batch_size_is_another_run(tmp_path: Path) -> None:
    task = toy_task()
    training.fit(toy_config(num_steps=4, **{"devices.count": 2}), task, tmp_path)
    with pytest.raises(UserError, match="holds a run of another config"):
        training.fit(toy_config(num_steps=4, batch_size=5), task, tmp_path)


def test_importing_the_library_starts_no_backend() -> None:
    program = (
        "import jax, lstm_jax.training, lstm_jax.tasks, lstm_jax.devices\n"
        "lstm_jax.devices.use_cpus(3, 48)\n"
        "print(len(jax.devices()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "3\n"


@pytest.mark.parametrize(
    "error", [AssertionError(), RuntimeError("Unknown backend: 'no such'")]
)
def test_platforms_that_are_not_there(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    platforms = jax.config.jax_platforms  # type: ignore
    for make in (lambda: devices.use_cpus(0, 4), lambda: devices.make_mesh(0, 4)):
        with pytest.raises(UserError) as raised:
            make()
        start = f"JAX_PLATFORMS={platforms}, and jax finds no such devices"
        reason = f" ({error})" if str(error) else ""
        assert str(raised.value).startswith(f"{start}{reason}: unset it")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("platforms", "command"),
    [
        ("cuda", ("train.py", "--workdir={tmp}/run")),
        ("tpu", ("train.py", "--workdir={tmp}/run")),
        ("nonsense", ("train.py", "--workdir={tmp}/run")),
        ("cuda", ("-m", "lstm_jax.export", "--workdir={tmp}/no", "--out={tmp}/run")),
        ("tpu", ("-m", "lstm_jax.certify", "--against=tf1", "--out={tmp}/run")),
    ],
)
def test_platforms_of_a_command_that_are_not_there(
    platforms: str, command: tuple[str, ...], tmp_path: Path
) -> None:
    if platforms in {device.platform for device in jax.devices()}:
        pytest.skip("they are")
    done = run_process(
        *(argument.format(tmp=tmp_path) for argument in command),
        env=os.environ | {"JAX_PLATFORMS": platforms},
    )
    assert_user_error(done, f"JAX_PLATFORMS={platforms}, and jax finds no such devices")
    assert not (tmp_path / "run").exists()
