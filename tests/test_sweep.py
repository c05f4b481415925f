"""Tests of lstm_jax.sweeps: many runs at once, each as it would be alone."""

import json
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_runs import READS_CONFIG, TINY, WORDS, assert_user_error
from reference import assert_same_bits
from toy_runs import (
    climbing_config,
    climbing_task,
    hashes,
    ragged_task,
    rows_of,
    saved_state,
    toy_arrays,
    toy_config,
    toy_model,
    toy_task,
)

import lstm_jax as lj
from lstm_jax import checkpoints, members, reporting, steps, sweep_report, workdirs
from lstm_jax.config import check_config
from lstm_jax.errors import Interrupted, UserError
from lstm_jax.members import Member
from lstm_jax.optimizers import make_optimizer
from lstm_jax.steps import Stepping
from lstm_jax.sweep_folders import folder_of
from lstm_jax.tasks import classification, make_task

pytestmark = pytest.mark.usefixtures("fast_runs")

SEEDS, RATES = 3, (0.03, 1.0)


def sweep_config(**fields: Any) -> Any:
    """Six members on two devices, or five where one has to be padded."""
    return toy_config(
        **{
            "seed": 5,
            "sweep.seeds": SEEDS,
            "sweep.learning_rates": RATES,
            "devices.count": 2,
            "report.evaluate_every": 4,
            "checkpoint.every": 6,
            **fields,
        }
    )


def alone(config: Any, member: Member) -> Any:
    """The config of a member's own run."""
    config = config.copy_and_resolve_references()
    config.sweep.seeds, config.sweep.learning_rates = 0, ()
    config.devices.count = 1
    config.seed, config.optimizer.learning_rate = member
    return config


def rows_by_member(workdir: Path) -> dict[Member, list[Any]]:
    """Rows of metrics.jsonl without the time they took."""
    found: dict[Member, list[Any]] = {}
    for row in reporting.read_metrics(workdir):
        del row["seconds"]
        member = Member(row.pop("seed"), row.pop("learning_rate"))
        found.setdefault(member, []).append(row)
    return found


def assert_close(tree: Any, wanted: Any) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
        tree,
        wanted,
    )


def assert_rows_close(rows: list[Any], wanted: list[Any]) -> None:
    assert [(r["step"], r["split"]) for r in rows] == [
        (r["step"], r["split"]) for r in wanted
    ]
    for row, other in zip(rows, wanted, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {"split"}:
            assert row[name] == pytest.approx(other[name], rel=2e-5), name


def test_each_member_is_the_run_alone(tmp_path: Path) -> None:
    config = sweep_config(
        **{
            "optimizer.schedule": "cosine",
            "optimizer.warmup_steps": 3,
            "optimizer.clip_norm": 0.5,
            "optimizer.ema": 0.1,
            "checkpoint.best": "all_loss",
            "patience": 2,
            "sweep.seeds": 2,
        }
    )
    task = toy_task(dropout=0.5)
    result = lj.fit(config, task, tmp_path / "sweep")
    members_ = members.members_of(config)
    assert members_ == tuple(Member(s, r) for r in RATES for s in (5, 6))
    reached, ends, waited = {}, [], []
    for member in members_:
        own, folder = alone(config, member), folder_of(tmp_path / "sweep", member)
        wanted = lj.fit(own, task, tmp_path / str(member))
        assert_rows_close(
            rows_by_member(tmp_path / "sweep")[member], rows_of(tmp_path / str(member))
        )
        assert rows_of(folder) == rows_by_member(tmp_path / "sweep")[member]
        last = saved_state(folder, own, task)
        assert_close(last, saved_state(tmp_path / str(member), own, task))
        ends.append(int(last.step))
        best = wanted["best_step"]
        waited.append(ends[-1] - best)
        assert workdirs.answering_step(folder, "all_loss") == best
        assert_close(
            workdirs.load_params(folder, best),
            workdirs.load_params(tmp_path / str(member), best),
        )
        reached[member] = wanted
    # It is a run, which has ended; another start trains nothing.
    again = lj.fit(own, task, folder)
    for name in ("step", "epoch", "best_step", "all_loss", "all_accuracy"):
        assert again[name] == pytest.approx(wanted[name], rel=2e-5)
    # Patience ended some before others, and some at a worse step than their best.
    assert len(set(ends)) > 1
    assert {0, 8} <= set(waited)
    best = min(members_, key=lambda m: reached[m]["all_loss"])
    assert Member(result["best"]["seed"], result["best"]["learning_rate"]) == best
    assert result["metric"] == "all_loss"
    for of, rate in zip(result["learning_rates"], RATES, strict=True):
        values = [reached[m]["all_loss"] for m in members_ if m.learning_rate == rate]
        assert (of["learning_rate"], of["seeds"], of["diverged"]) == (rate, 2, 0)
        assert of["all_loss"]["mean"] == pytest.approx(np.mean(values), rel=2e-5)
        sd = np.std(values, ddof=1)
        assert of["all_loss"]["sd"] == pytest.approx(sd, rel=1e-3)


def swept_state(workdir: Path, step: int | None = None) -> Any:
    """The stacked state of a sweep's checkpoint, as it lies there."""
    with checkpoints.open_checkpoints(workdir) as opened:
        step = checkpoints.latest_step(opened) if step is None else step
        tree = checkpoints._saved_tree(checkpoints._state_folder(opened, step))
        handler = checkpoints.ocp.PyTreeCheckpointHandler()
        args = checkpoints.ocp.args.PyTreeRestore(
            item=tree,
            restore_args=jax.tree.map(
                lambda _: checkpoints.ocp.RestoreArgs(restore_type=np.ndarray), tree
            ),
        )
        return handler.restore(checkpoints._state_folder(opened, step), args=args)


class Cut(Exception):  # noqa: N818
    """What cuts a sweep off."""


@pytest.fixture
def interrupting(monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    """Does something once, when a sweep has written its rows of a step."""
    add_rows, at = sweep_report.add_rows, {}

    def add(report: Any, rows: Any) -> None:
        add_rows(report, rows)
        if (act := at.pop(rows[0]["step"], None)) is not None:
            act()

    monkeypatch.setattr(sweep_report, "add_rows", add)
    return at


def test_stopped_and_continued_is_as_never_stopped(
    tmp_path: Path, interrupting: dict[int, Any]
) -> None:
    """Also on another number of devices, of which the last has fewer members."""
    fields = {"checkpoint.best": "all_loss", "patience": 3}
    config = sweep_config(**fields, **{"sweep.learning_rates": (), "devices.count": 2})
    task = toy_task(dropout=0.5)
    wanted = lj.fit(config, task, tmp_path / "whole")

    def cut() -> None:
        raise Cut

    interrupting[8] = cut
    with pytest.raises(Cut):
        lj.fit(config, task, tmp_path / "parts")
    interrupting[15] = lambda: signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        lj.fit(config, task, tmp_path / "parts")
    assert caught.value.step == 16
    config.devices.count = 1
    result = lj.fit(config, task, tmp_path / "parts")
    assert result["learning_rates"] == wanted["learning_rates"]
    assert_same_bits(swept_state(tmp_path / "parts"), swept_state(tmp_path / "whole"))
    whole = rows_by_member(tmp_path / "whole")
    assert rows_by_member(tmp_path / "parts") == whole
    assert len(whole) == SEEDS
    before = hashes(tmp_path / "parts")
    assert lj.fit(config, task, tmp_path / "parts") == result
    assert hashes(tmp_path / "parts") == before
    # Made anew where a kill left it out, or left half of it.
    folder = folder_of(tmp_path / "parts", Member(6, 0.03))
    folder.rename(folder.with_name(f"{folder.name}.tmp"))
    assert lj.fit(config, task, tmp_path / "parts") == result
    assert (folder / "config.json").read_bytes()
    assert rows_of(folder) == whole[Member(6, 0.03)]


def falling_task(limit: float) -> Any:
    """The loss is not a number once the one parameter is beyond a limit."""
    return climbing_task(lambda w: w)._replace(
        loss=lambda params, examples, weight, key, carry: (
            {
                "count": jnp.sum(weight),
                "loss": jnp.sum(
                    weight * jnp.where(params["w"] > limit, jnp.nan, -params["w"])
                ),
            },
            carry,
        )
    )


DIVERGING = {
    "num_steps": 12,
    "report.every": 3,
    "sweep.seeds": 2,
    "sweep.learning_rates": (1.0, 0.1),
    "checkpoint.every": 5,
}


def test_a_member_that_diverges_ends_no_other(tmp_path: Path) -> None:
    config = climbing_config(**DIVERGING)
    result = lj.fit(config, falling_task(5.5), tmp_path)
    rates = result["learning_rates"]
    assert [(r["seeds"], r["diverged"]) for r in rates] == [(2, 2), (2, 0)]
    assert rates[0]["test_loss"] == {"mean": None, "sd": None}
    assert rates[1]["test_loss"]["mean"] == pytest.approx(-1.2, rel=1e-5)
    assert result["best"]["learning_rate"] == 0.1
    rows = rows_by_member(tmp_path)
    losses = [(r["step"], r["loss"]) for r in rows[Member(0, 1.0)]]
    assert losses == [(3, -1), (6, -4), (9, None)]  # null, and then no more
    assert rows[Member(1, 0.1)][-1]["step"] == 12
    state = swept_state(tmp_path)["members"]
    np.testing.assert_array_equal(state["step"], [7, 7, 12, 12])
    assert not folder_of(tmp_path, Member(0, 1.0)).exists()
    assert folder_of(tmp_path, Member(0, 0.1)).exists()


@pytest.mark.parametrize(
    "rates", [(1.0, 0.1), pytest.param((1.0,), marks=pytest.mark.slow)]
)
def test_the_best_before_a_member_diverged_answers(
    tmp_path: Path, rates: tuple[float, ...]
) -> None:
    config = climbing_config(**{**DIVERGING, "checkpoint.best": "test_loss"})
    config.report.evaluate_every = 3
    config.sweep.learning_rates = rates
    result = lj.fit(config, falling_task(5.5), tmp_path)
    best = result["best"]
    folder = folder_of(tmp_path, Member(0, 1.0))
    # Before the step whose loss was no number; at 6 the evaluation is none either.
    assert (best["learning_rate"], best["step"], best["test_loss"]) == (1.0, 3, -3.0)
    assert best["workdir"] == str(folder)
    assert [r["diverged"] for r in result["learning_rates"]] == [2, 0][: len(rates)]
    assert workdirs.answering_step(folder, "test_loss") == 3
    assert float(workdirs.load_params(folder, 3)["w"]) == 3.0
    before = hashes(tmp_path)
    assert lj.fit(config, falling_task(5.5), tmp_path) == result
    assert hashes(tmp_path) == before


def test_members_without_patience_are_not_trained_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = climbing_config(num_steps=0, num_epochs=3, patience=1)
    config.checkpoint.best, config.sweep.seeds = "test_loss", 2
    task = climbing_task(lambda w: w)
    result = lj.fit(config, task, tmp_path)
    assert workdirs.read_config(tmp_path).num_epochs == 3
    config.num_epochs = 9
    capsys.readouterr()
    assert lj.fit(config, task, tmp_path) == result
    said = capsys.readouterr().err.splitlines()[0]
    assert said == (
        "all members have ended by step 4 of 18 (one whose patience did goes on alone, "
        f"in its folder of {tmp_path}/members, with a larger patience): not trained "
        "again"
    )
    assert workdirs.read_config(tmp_path).num_epochs == 3
    # Others would have gone on meanwhile.
    config.patience = 2
    with pytest.raises(UserError, match="in patience: 1 there, 2 here"):
        lj.fit(config, task, tmp_path)
    # One alone goes on, as it is of the same model, loss and data.
    folder = folder_of(tmp_path, Member(1, 1.0))
    own = workdirs.read_config(folder)
    own.patience = 2
    assert lj.fit(own, task, folder)["step"] == 2
    assert rows_of(folder, "test")[-1]["step"] == 6
    with pytest.raises(UserError, match="a run of another model or training loss"):
        lj.fit(own, climbing_task(lambda w: 2 * w), folder)


def test_steps_whose_updates_are_skipped_end_no_member(tmp_path: Path) -> None:
    """A row in which all were skipped has no mean, which is not a loss that is none."""
    inputs, labels = toy_arrays()
    inputs[3] = np.nan
    task = classification(toy_model(), inputs, labels)
    config = toy_config(**{"optimizer.skip_nonfinite": 3, "num_steps": 6})
    config.report.every, config.sweep.seeds = 1, 2
    result = lj.fit(config, task, tmp_path)
    rows = [row for of in rows_by_member(tmp_path).values() for row in of]
    assert sorted({row["step"] for row in rows if row["loss"] is None}) != []
    assert result["learning_rates"][0]["diverged"] == 0
    # Without a split it is the training loss that tells which is the best.
    assert result["metric"] == "train_loss"
    known = [row for row in reporting.read_metrics(tmp_path) if row["loss"] is not None]
    last = {row["seed"]: row["loss"] for row in known}
    assert result["best"]["train_loss"] == min(last.values())
    assert [row["step"] for row in rows].count(6) == 2


def test_going_on_replaces_no_run_of_a_members_own(tmp_path: Path) -> None:
    config = climbing_config(**{"num_steps": 2, "sweep.seeds": 2})
    task = climbing_task(lambda w: w)
    lj.fit(config, task, tmp_path)
    member = Member(1, 1.0)
    folder = folder_of(tmp_path, member)
    config.num_steps = 4
    with pytest.raises(UserError, match="holds a sweep: name the folder of a member"):
        workdirs.load_params(tmp_path, 2)
    own = alone(config, member)
    own.num_steps = 6
    lj.fit(own, task, folder)
    before = hashes(tmp_path)
    with pytest.raises(UserError, match="was trained on to step 6 and the sweep would"):
        lj.fit(config, task, tmp_path)
    assert {k: v for k, v in hashes(tmp_path).items() if k in before} == before
    config.num_steps = own.num_steps = 8
    folder.rename(tmp_path / "mine")
    lj.fit(config, task, tmp_path)
    for seed in (0, 1):
        assert (
            workdirs.answering_step(folder_of(tmp_path, Member(seed, 1.0)), None) == 8
        )
    lj.fit(own, task, tmp_path / "mine")
    whole = saved_state(folder, own, task), saved_state(tmp_path / "mine", own, task)
    assert_same_bits(*(state.params for state in whole))


def test_where_all_diverge_one_line_says_so(tmp_path: Path) -> None:
    config = climbing_config(**{"sweep.seeds": 2, "report.every": 3})
    with pytest.raises(UserError, match="not finite in all of the 2 members by step"):
        lj.fit(config, falling_task(5.5), tmp_path)
    with pytest.raises(UserError, match="its members can be read at its end: the same"):
        workdirs.load_source(tmp_path, tmp_path / "other")


@pytest.mark.slow
def test_vmap_is_one_by_one_and_nothing_is_communicated() -> None:
    """On two devices; across the end of an epoch, some members ended before."""
    task = toy_task(dropout=0.5, cells=(lj.lstm(3),))
    config = sweep_config()

    def stepping(rate: Any) -> Stepping:
        return Stepping(task, make_optimizer(config.optimizer, 20, rate), 4)

    states = []
    with jax.set_mesh(members.make_mesh(2, 4)):
        drawn = members.draw(tuple(Member(s, r) for s in (1, 2) for r in RATES))
        examples = jax.device_put(task.examples[0], members.whole())
        counts = jax.device_put(np.array([5, 0, 5, 2], np.int32), members.divided())

        def run(own: Any, examples: Any) -> Any:
            state, drawn, count = own
            return steps.train_steps(
                stepping(drawn.learning_rate),
                drawn.keys,
                state,
                examples,
                jnp.int32(0),
                count,
            )

        init = jax.jit(lambda d: members.init_states(stepping, d, lambda s: s))
        for one_by_one in (True, False):
            program = jax.jit(members.each_member(run, one_by_one))
            own = init(drawn), drawn, counts
            text = program.lower(own, examples).compile().as_text()
            for collective in ("all-reduce", "all-gather", "collective", "all-to-all"):
                assert collective not in text
            states.append(jax.device_get(program(own, examples)))
    np.testing.assert_array_equal(states[0].step, [5, 0, 5, 2])
    assert_close(states[1], states[0])
    assert np.abs(states[0].params["head"]["kernel"][0]).sum() > 0.1


@pytest.mark.slow
def test_nothing_compiles_after_the_first_epoch(
    tmp_path: Path, interrupting: dict[int, Any], caplog: pytest.LogCaptureFixture
) -> None:
    config = sweep_config(**{"checkpoint.best": "all_loss", "checkpoint.every": 2})
    config.report.every = config.report.evaluate_every = 2

    def log(wanted: bool) -> Any:
        return lambda: jax.config.update("jax_log_compiles", wanted)

    interrupting |= {4: log(True), 20: log(False)}
    lj.fit(config, toy_task(), tmp_path)
    assert [r.message for r in caplog.records if "ompil" in r.message] == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sweep.seeds": -1}, "sweep.seeds=-1 must be at least 0"),
        ({"seed": 2**32 - 2}, "seed + sweep.seeds at most"),
        ({"sweep.learning_rates": (10**400,)}, "must be below 2**31"),
        ({"sweep.seeds": 2**31 - 1}, "runs of one sweep: make it 10000 at most"),
        ({"sweep.learning_rates": (0.1, -1.0)}, "must be numbers, finite and at least"),
        ({"sweep.learning_rates": ("fast",)}, "must be numbers, finite and at least"),
        ({"sweep.learning_rates": (0.1, 0.1)}, "give each of them once"),
        ({"devices.fsdp": True}, "set --config.devices.fsdp=False"),
        ({"report.samples": True}, "set --config.report.samples=False"),
        ({"data.buckets": 2}, "set --config.data.buckets=1"),
    ],
)
def test_what_cannot_be_swept(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_config(sweep_config(**fields))
    assert message in str(caught.value)


def test_what_cannot_be_swept_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 buckets of lengths are nothing for a sweep"):
        lj.fit(sweep_config(), ragged_task(2), tmp_path / "run")
    with pytest.raises(UserError, match=r"devices\.count=9 and there are 4"):
        lj.fit(sweep_config(**{"devices.count": 9}), toy_task(), tmp_path / "run")
    config = sweep_config(**{"checkpoint.best": "all_f1"})
    with pytest.raises(UserError, match="'all_f1' is never evaluated"):
        lj.fit(config, toy_task(), tmp_path / "run")
    with pytest.raises(UserError, match="depend on the seed"):
        make_task(sweep_config(**{"data.order": "walk"}))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_started_from_another_run(tmp_path: Path) -> None:
    config = sweep_config(num_steps=1, **{"optimizer.learning_rate": 0.0})
    config.sweep.learning_rates = ()
    source = alone(config, Member(9, 0.03))
    lj.fit(source, toy_task(), tmp_path / "source")
    lj.fit(config, toy_task(), tmp_path / "sweep", init_from=tmp_path / "source")
    wanted = workdirs.load_params(tmp_path / "source", 1)
    for seed in (5, 6, 7):
        folder = folder_of(tmp_path / "sweep", Member(seed, 0.0))
        assert_same_bits(workdirs.load_params(folder, 1), wanted)


def test_spreads_in_numbers() -> None:
    values = [1.0, None, 2.0, 6.0]
    rows = [
        {"seed": i, "learning_rate": 0.1, "step": 5, "split": "all", "loss": value}
        for i, value in enumerate(values)
    ]
    (row,) = sweep_report.spreads(rows)
    assert row["loss"] == (3.0, pytest.approx(7**0.5))
    assert row.keys() == {"learning_rate", "step", "split", "loss"}
    # Seed 0 has ended at step 5, and counts with what it was then.
    later = [{**row, "step": 9, "loss": 4.0} for row in rows[1:]]
    assert sweep_report.spreads(rows + later)[1]["loss"].mean == 13 / 4
    assert sweep_report.show_spread(row["loss"]) == "3.0000 ± 2.6458"
    assert sweep_report.spread_of([None, 2.0]) == (2.0, None)
    assert sweep_report.show_spread(sweep_report.spread_of([None])) == "not finite"
    assert sweep_report.draw(rows, "one").startswith(b"\x89PNG")


@READS_CONFIG
def test_command_line(tmp_path: Path, call: Any) -> None:
    flags = ["--config.sweep.seeds=2", "--config.sweep.learning_rates=1e-2,1"]
    done = call("train.py", f"--workdir={tmp_path}", *TINY, *flags)
    assert done.code == 0
    result = json.loads(done.out.splitlines()[-1])
    assert [r["learning_rate"] for r in result["learning_rates"]] == [0.01, 1.0]
    assert done.err.splitlines()[-3].startswith("learning rate  windows_loss ")
    said = call("predict.py", f"--workdir={result['best']['workdir']}", WORDS)
    assert said.code == 0
    assert said.out.startswith("long ago , the mice ")
    refused = call("predict.py", f"--workdir={tmp_path}", WORDS)
    assert_user_error(refused, "holds a sweep: name the folder of a member, such as")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
