"""Tests of lstm_jax.checkpoints."""

import json
import math
import pathlib
import shutil
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lstm_jax import checkpoints, manifest
from lstm_jax.errors import UserError


class TrainState(NamedTuple):
    step: Any
    params: Any
    opt_state: Any
    sums: Any
    average: Any = ()
    carry: Any = ()


def random_state(tx, width=3):
    """A state after one update, so that no leaf of the optimizer is all zeros."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = {
        "cell": {"kernel": draw(2, width), "bias": draw(width).astype(jnp.bfloat16)},
        "head": {"kernel": draw(width, 1)},
    }
    grads = jax.tree.map(lambda p: (p * 3).astype(p.dtype), params)
    _, opt_state = tx.update(grads, tx.init(params), params)
    sums = {"loss": draw(), "count": jnp.int32(rng.integers(9)), "done": jnp.bool_(1)}
    return TrainState(jnp.int32(rng.integers(1, 99)), params, opt_state, sums)


def assert_same_bits(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        assert a.dtype == b.dtype, path
        assert a.shape == b.shape, path
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


def small_state(seed):
    kernel = np.random.default_rng(seed).normal(size=3).astype(np.float32)
    return TrainState(jnp.int32(seed), {"kernel": jnp.asarray(kernel)}, (), {})


def save_all(workdir, metrics, keep=1, best="test_loss", first=1):
    """Saves a checkpoint for each entry of `metrics`, at steps first, first + 1, ..."""
    with checkpoints.open_checkpoints(workdir, keep, best) as manager:
        for step, values in enumerate(metrics, first):
            meta = {} if values is None else {"metrics": values}
            checkpoints.save(manager, step, small_state(step), meta)
    return folders(workdir)


def folders(workdir):
    names = [f.name for f in (workdir / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


OPTIMIZERS = {
    "adam": optax.adam(1e-3),
    "rmsprop": optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.rmsprop(optax.cosine_decay_schedule(0.1, 10), momentum=0.9),
    ),
    "masked": optax.masked(optax.adam(1e-3), {"cell": True, "head": False}),
    "injected": optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_round_trip_is_exact(tmp_path, name):
    state = random_state(OPTIMIZERS[name])
    odd = jnp.asarray([-0.0, math.nan, math.inf, 1e-45], jnp.float32)
    state = state._replace(sums={**state.sums, "odd": odd})
    meta = {"epoch": 2, "metrics": {"test_loss": 0.5, "x": None}, "config": {"a": [1]}}
    with checkpoints.open_checkpoints(tmp_path, keep=1) as manager:
        checkpoints.save(manager, 7, state, meta)
        meta["metrics"]["test_loss"] = 9.0  # what was saved is a copy
        blank = jax.tree.map(jnp.zeros_like, state)
        for like in (blank, jax.eval_shape(lambda s: s, state)):
            restored, restored_meta = checkpoints.restore(manager, 7, like)
            assert_same_bits(restored, state)
            assert type(restored) is TrainState
            assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(restored))
    assert restored_meta.pop("format") == checkpoints.FORMAT == 2
    assert isinstance(restored_meta.pop("version"), str)
    assert restored_meta == {**meta, "metrics": {"test_loss": 0.5, "x": None}}


def test_state_may_be_donated_after_save(tmp_path):
    increment = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    noise = np.random.default_rng(0).normal(size=(500, 1000)).astype(np.float32)
    state = increment(TrainState(jnp.int32(0), {"w": jnp.asarray(noise)}, {}, {}))
    want = jax.tree.map(lambda x: np.array(x, copy=True), state)
    with checkpoints.open_checkpoints(tmp_path, keep=1) as manager:
        checkpoints.save(manager, 1, state, {})
        for _ in range(5):
            state = increment(state)
        restored, _ = checkpoints.restore(manager, 1, state)
    assert_same_bits(restored, want)


def test_worsening_metric_keeps_best_and_newest(tmp_path):
    losses = [{"test_loss": loss} for loss in (3.0, 1.0, 2.0, 4.0, 5.0)]
    assert save_all(tmp_path, losses, keep=2) == [2, 4, 5]
    with checkpoints.open_checkpoints(tmp_path) as manager:
        assert checkpoints.latest_step(manager) == 5
        assert checkpoints.best_step(manager, "test_loss") == 2
        for step in (2, 4, 5):
            want = small_state(step)
            assert_same_bits(checkpoints.restore(manager, step, want)[0], want)


@pytest.mark.parametrize(
    ("metric", "best"),
    [
        ("windows_loss", 2),
        ("test_perplexity", 2),
        ("test_mae", 2),
        ("test_rmse", 2),
        ("test_accuracy", 1),
        ("loss_ratio", 1),
    ],
)
def test_direction_follows_the_name(tmp_path, metric, best):
    values = [{metric: value} for value in (3.0, 1.0, 2.0)]
    assert save_all(tmp_path, values, best=metric) == [best, 3]
    with checkpoints.open_checkpoints(tmp_path) as manager:
        assert checkpoints.best_step(manager, metric) == best


def test_checkpoint_without_metric_is_never_best(tmp_path):
    useless = [None, {}, {"other": 0.0}] + [
        {"test_loss": value} for value in (None, math.nan, math.inf, -math.inf)
    ]
    steps = save_all(tmp_path, [*useless, {"test_loss": 2.0}, *useless])
    assert steps == [8, 15]
    with checkpoints.open_checkpoints(tmp_path) as manager:
        assert checkpoints.best_step(manager, "test_loss") == 8


def test_no_tracked_metric_keeps_the_last(tmp_path):
    metrics = [{"test_loss": 1.0}, None, {"test_loss": 2.0}, None]
    assert save_all(tmp_path, metrics, keep=2, best=None) == [3, 4]
    # Kept beside the weights all the same: the metric may be tracked later.
    assert save_all(tmp_path, [None, None], keep=1, first=5) == [3, 6]


def test_no_checkpoint_has_the_metric(tmp_path):
    assert save_all(tmp_path, [None, None, None]) == [3]
    with checkpoints.open_checkpoints(tmp_path) as manager:
        assert checkpoints.best_step(manager, "test_loss") is None
        assert checkpoints.latest_step(manager) == 3


def test_policy_holds_after_reopening(tmp_path):
    assert save_all(tmp_path, [{"test_loss": 2.0}, {"test_loss": 1.0}]) == [2]
    assert save_all(tmp_path, [{"test_loss": 3.0}], first=3) == [2, 3]
    assert save_all(tmp_path, [None, {"test_loss": math.nan}], first=4) == [2, 5]
    assert save_all(tmp_path, [{"test_loss": 0.5}, None], first=6) == [6, 7]
    # As if killed while it deleted step 6.
    shutil.rmtree(tmp_path / "checkpoints" / "6" / "metrics")
    assert save_all(tmp_path, [None], first=8) == [8]


def test_reading_changes_nothing(tmp_path):
    with checkpoints.open_checkpoints(tmp_path / "none") as manager:
        assert checkpoints.latest_step(manager) is None
        assert checkpoints.best_step(manager, "test_loss") is None
        with pytest.raises(UserError, match=r"no checkpoint of step 3 .*: none$"):
            checkpoints.restore_params(manager, 3)
    assert not (tmp_path / "none").exists()
    save_all(tmp_path, [None, None], keep=2)
    unfinished = tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp"
    unfinished.mkdir()
    with checkpoints.open_checkpoints(tmp_path) as manager:
        checkpoints.restore_params(manager, 1)
    assert unfinished.exists()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


def test_interrupted_save_is_ignored(tmp_path):
    save_all(tmp_path, [{"test_loss": 2.0}, {"test_loss": 3.0}], keep=2)
    root = tmp_path / "checkpoints"
    unfinished = root / "4.orbax-checkpoint-tmp"
    shutil.copytree(root / "2", unfinished)
    shutil.rmtree(unfinished / "metrics")
    (unfinished / "commit_success.txt").unlink()
    (unfinished / "state").rename(unfinished / "state.orbax-checkpoint-tmp")
    with checkpoints.open_checkpoints(tmp_path, keep=2) as manager:
        assert checkpoints.latest_step(manager) == 2
        assert checkpoints.best_step(manager, "test_loss") == 1
        state = small_state(3)
        checkpoints.save(manager, 3, state, {"metrics": {"test_loss": 1.0}})
        assert checkpoints.best_step(manager, "test_loss") == 3
        assert checkpoints.latest_step(manager) == 3
        assert_same_bits(checkpoints.restore(manager, 3, state)[0], state)
    assert folders(tmp_path) == [2, 3]


def test_interrupted_deletion_is_ended(tmp_path, capsys):
    root = tmp_path / "checkpoints"
    save_all(tmp_path, [None, None, None], keep=3, best=None)
    shutil.copytree(root / "1", tmp_path / "copy")
    (tmp_path / "copy" / manifest.FILE).unlink()
    shutil.rmtree(root / "1")
    # Where it would stay, or may have been the best one, it is damaged.
    for keep, best, stays in ((2, None, False), (3, None, True), (1, "loss", True)):
        shutil.copytree(tmp_path / "copy", root / "1")
        with checkpoints.open_checkpoints(tmp_path, keep, best) as manager:
            assert checkpoints.latest_step(manager) == 3
            assert not (root / "1").exists()
            assert (root / "damaged-1").exists() is stays
        said = capsys.readouterr().err
        if not stays:
            assert said == ""
        else:
            shutil.rmtree(root / "damaged-1")
    assert folders(tmp_path) == [2, 3]


def test_missing_step_names_the_available(tmp_path):
    save_all(tmp_path, [None, None, None], keep=2)
    with (
        checkpoints.open_checkpoints(tmp_path) as manager,
        pytest.raises(UserError, match=r"no checkpoint of step 9 .*: 2, 3$"),
    ):
        checkpoints.restore(manager, 9, small_state(9))


def test_saving_an_old_step_is_refused(tmp_path):
    save_all(tmp_path, [None, None], keep=2)
    with (
        checkpoints.open_checkpoints(tmp_path, keep=2) as manager,
        pytest.raises(ValueError, match="step 2 is not after step 2"),
    ):
        checkpoints.save(manager, 2, small_state(2), {})
    with (
        pytest.raises(UserError, match="at least 1"),
        checkpoints.open_checkpoints(tmp_path, keep=0),
    ):
        pass


def test_newer_format_is_refused(tmp_path):
    save_all(tmp_path, [None])
    path = tmp_path / "checkpoints" / "1" / "metrics" / "metrics"
    newer = checkpoints.FORMAT + 1
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": newer}))
    manifest.write(tmp_path / "checkpoints" / "1")
    with checkpoints.open_checkpoints(tmp_path) as manager:
        for read in (
            lambda: checkpoints.restore(manager, 1, small_state(1)),
            lambda: checkpoints.restore_params(manager, 1),
            lambda: checkpoints.read_meta(manager, 1),
        ):
            with pytest.raises(UserError, match=r"has format 3 .* reads up to 2"):
                read()


def test_mismatch_is_one_line(tmp_path):
    adam = optax.adam(1e-3)
    with checkpoints.open_checkpoints(tmp_path, keep=1) as manager:
        checkpoints.save(manager, 1, random_state(adam), {})

        def message(state):
            with pytest.raises(UserError) as error:
                checkpoints.restore(manager, 1, state)
            assert "\n" not in str(error.value)
            return str(error.value)

        wider = message(random_state(adam, width=4))
        assert "params/cell/bias is bfloat16[3], not bfloat16[4]; " in wider
        assert "params/cell/kernel is float32[2, 3], not float32[2, 4]; " in wider
        # The other six: the same three arrays in each of Adam's two moments.
        assert wider.count(" is float32") + wider.count(" is bfloat16") == 3
        assert " and 6 more. " in wider

        state = random_state(adam)
        other_type = state._replace(step=jnp.float32(1))
        text = message(other_type)
        assert ": step is int32[], not float32[]. " in text
        assert "more" not in text

        extra = state._replace(sums={**state.sums, "norm": jnp.zeros(2)})
        assert ": sums/norm is absent, not float32[2]. " in message(extra)
        fewer = state._replace(sums={"loss": jnp.zeros(())})
        text = message(fewer)
        assert "sums/count is int32[], not absent" in text
        assert "sums/done is bool[], not absent" in text
        # No array differs, only the number of empty nodes.
        empty = state._replace(opt_state=(*state.opt_state, optax.EmptyState()))
        assert ": opt_state/2 is absent, not empty. " in message(empty)
        assert "opt_state/0/mu/cell/bias is bfloat16[3], not absent" in message(
            random_state(optax.sgd(0.1))
        )


def test_restore_params_needs_no_optimizer(tmp_path):
    state = random_state(OPTIMIZERS["rmsprop"])
    with checkpoints.open_checkpoints(tmp_path, keep=1) as manager:
        checkpoints.save(manager, 4, state, {})
        params = checkpoints.restore_params(manager, 4)
    assert_same_bits(params, state.params)
    assert type(params) is dict
    assert type(params["cell"]) is dict
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(params))


def test_empty_fields_are_not_stored(tmp_path):
    """So that a checkpoint of before these fields is read as one of today's."""
    state = random_state(OPTIMIZERS["adam"])

    class OlderState(NamedTuple):
        step: Any
        params: Any
        opt_state: Any
        sums: Any

    older = OlderState(*state[:4])
    with checkpoints.open_checkpoints(tmp_path, keep=2) as manager:
        checkpoints.save(manager, 1, older, {})
        checkpoints.save(manager, 2, state, {})
        for step in (1, 2):
            restored, _ = checkpoints.restore(manager, step, state)
            assert_same_bits(restored, state)
            assert (restored.average, restored.carry) == ((), ())
            assert_same_bits(checkpoints.restore(manager, step, older)[0], older)
            assert_same_bits(checkpoints.restore_params(manager, step), state.params)
        with_carry = state._replace(carry={"h": jnp.zeros(3)})
        with pytest.raises(UserError, match=r"carry/h is absent, not float32\[3\]"):
            checkpoints.restore(manager, 1, with_carry)


def test_average_answers_and_both_are_restored(tmp_path):
    state = random_state(OPTIMIZERS["adam"])
    average = jax.tree.map(lambda p: (p + 1).astype(p.dtype), state.params)
    carry = (jnp.arange(3.0), {"c": jnp.ones((2, 1), jnp.int32)})
    state = state._replace(average=average, carry=carry)
    with checkpoints.open_checkpoints(tmp_path, keep=1) as manager:
        checkpoints.save(manager, 1, state, {})
        assert_same_bits(checkpoints.restore_params(manager, 1), average)
        blank = jax.tree.map(jnp.zeros_like, state)
        assert_same_bits(checkpoints.restore(manager, 1, blank)[0], state)
        with pytest.raises(UserError, match=r"average/cell/bias is .*, not absent"):
            checkpoints.restore(manager, 1, state._replace(average=()))


def test_small_model_is_small_on_disk(tmp_path):
    with checkpoints.open_checkpoints(tmp_path, keep=1) as manager:
        checkpoints.save(manager, 1, random_state(OPTIMIZERS["adam"]), {})
    files = [f for f in tmp_path.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 30_000
    assert len(files) < 25


OTHER_PROCESS = """
import sys
from typing import Any, NamedTuple

import jax, jax.numpy as jnp
from lstm_jax import checkpoints, manifest


class TrainState(NamedTuple):
    step: Any
    params: Any
    opt_state: Any
    sums: Any


mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
kernel = jax.device_put(jnp.arange(8.0) / 3, sharding)
state = TrainState(jnp.int32(5), {"kernel": kernel}, (), {})
with checkpoints.open_checkpoints(sys.argv[1], keep=1, best="test_loss") as manager:
    for step, loss in enumerate([1.0, 2.0, None, 3.0], 1):
        meta = {"metrics": {"test_loss": loss}} if loss else {}
        checkpoints.save(manager, step, state, meta)
with checkpoints.open_checkpoints(sys.argv[1]) as manager:
    restored, _ = checkpoints.restore(manager, 4, state)
    assert restored.params["kernel"].sharding == sharding
    checkpoints.restore_params(manager, checkpoints.best_step(manager, "test_loss"))
"""


def test_another_process_with_other_devices_in_silence(tmp_path, monkeypatch):
    root = pathlib.Path(__file__).parents[1]
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PYTHONPATH", str(root))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", OTHER_PROCESS, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
    )
    # But for what Orbax says of a disk that is slow at the moment.
    said = [x for x in done.stderr.splitlines() if "Waiting for previous save" not in x]
    assert (done.returncode, done.stdout, said) == (0, "", [])
    assert folders(tmp_path) == [1, 4]
    kernel = jnp.arange(8.0) / 3
    state = TrainState(jnp.int32(5), {"kernel": kernel}, (), {})
    with checkpoints.open_checkpoints(tmp_path) as manager:
        assert checkpoints.best_step(manager, "test_loss") == 1
        restored, _ = checkpoints.restore(manager, 1, jax.eval_shape(lambda: state))
        assert_same_bits(restored, state)
        assert len(restored.params["kernel"].devices()) == 1
        params = checkpoints.restore_params(manager, 1)
        assert_same_bits(params, state.params)
