"""Tests of lstm_jax.identity: runs that differ in what they compute, or in their data.

The configs of such runs are equal.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_runs import hashes, toy_arrays, toy_config, toy_task

import lstm_jax as lj
from lstm_jax import devices, identity, prediction, serving, training, workdirs
from lstm_jax.combinators import zoneout
from lstm_jax.config import Config
from lstm_jax.convert import __main__ as convert
from lstm_jax.errors import UserError
from lstm_jax.identity import Identity
from lstm_jax.model_config import make_classifier
from lstm_jax.tasks import Task, classification, make_task

pytestmark = pytest.mark.usefixtures("fast_runs")


def identify(task: Task, **fields: Any) -> Identity:
    return prediction.identify(toy_config(**fields), task)


def differing(one: Identity, other: Identity) -> set[str]:
    return {name for name in one._fields if getattr(one, name) != getattr(other, name)}


def own_gates(factor: Any) -> lj.Cell:
    """A cell with the parameters of a simple_rnn."""

    def gates(extras: Any, carry: Any, zx: Any, zh: Any) -> Any:
        h = factor * jnp.tanh(zx + zh)
        return lj.HiddenCarry(h), h

    return lj.gated(4, 1, gates, carry=lj.HiddenCarry)


def task_of(cell: lj.Cell, **fields: Any) -> Task:
    return toy_task(cells=(cell,), **fields)


def with_loss(task: Task, change: Any) -> Task:
    def loss(*arguments: Any) -> Any:
        sums, carry = task.loss(*arguments)
        return sums | {"loss": change(sums["loss"])}, carry

    return task._replace(loss=loss)


@jax.custom_jvp
def doubled_in_training(x: Any) -> Any:
    return x


doubled_in_training.defjvp(lambda xs, ts: (xs[0], 2 * ts[0]))


def test_made_again_it_is_the_same() -> None:
    """New functions of the same code, as where a notebook's cell runs once more."""
    one, other = (identify(task_of(own_gates(0.5), dropout=0.5)) for _ in range(2))
    assert one == other
    array = np.full(4, 0.5, np.float32)
    one, other = (identify(task_of(own_gates(array.copy()))) for _ in range(2))
    assert one == other


@pytest.mark.parametrize(
    ("one", "other", "names"),
    [
        (own_gates(0.5), own_gates(0.25), {"loss", "evaluation"}),
        # Arrays that gates close over, whose bytes are in no jaxpr's text.
        (
            own_gates(np.array([1, 2, 3, 4], np.float32)),
            own_gates(np.array([1, 2, 3, 5], np.float32)),
            {"loss", "evaluation"},
        ),
        (
            lj.simple_rnn(4),
            lj.simple_rnn(4, kernel_init=jax.nn.initializers.normal()),
            {"init"},
        ),
        (lj.lstm(4), lj.gru(4), {"init", "loss", "evaluation"}),
    ],
)
def test_another_cell(one: lj.Cell, other: lj.Cell, names: set[str]) -> None:
    assert differing(identify(task_of(one)), identify(task_of(other))) == names


def test_another_loss() -> None:
    task, same = toy_task(dropout=0.5), toy_task(dropout=0.5)
    assert differing(identify(task), identify(same)) == set()
    for change, names in (
        (lambda loss: 100 * loss, {"loss", "evaluation"}),
        (doubled_in_training, {"loss"}),
    ):
        assert differing(identify(task), identify(with_loss(task, change))) == names
    other = identify(toy_task(dropout=0.25))
    assert differing(identify(task), other) == {"loss"}
    seen = {identify(task).evaluation}
    for change in (lambda loss: 2 * loss, np.sqrt, np.square, lambda loss: 1 / loss):
        reported = task._replace(
            finish=lambda means, change=change: means | {"loss": change(means["loss"])}
        )
        assert differing(identify(task), identify(reported)) == {"evaluation"}
        seen.add(identify(reported).evaluation)
    assert len(seen) == 5


def test_other_data() -> None:
    inputs, labels = toy_arrays()
    task = toy_task()
    changed = inputs.copy()
    changed[7, 2, 1] = np.nextafter(changed[7, 2, 1], np.float32(9))
    relabelled = labels.copy()
    relabelled[3] = (labels[3] + 1) % 3
    for other in (
        task._replace(examples=({"inputs": changed, "labels": labels},)),
        task._replace(examples=({"inputs": inputs, "labels": relabelled},)),
        task._replace(examples=({"inputs": inputs[::-1], "labels": labels[::-1]},)),
        task._replace(splits={"test": task.splits["all"]}),
        task._replace(order=np.arange(10)),
        # As many as the steps of the run read, but none of a walk.
        task._replace(order=np.arange(80) % 10),
    ):
        assert differing(identify(task), identify(other)) == {"data"}
    orders = [task._replace(order=np.arange(80) // n % 10) for n in (1, 8)]
    orders += [task._replace(order=np.where(np.arange(80) < 4, np.arange(80), 0))]
    assert len({identify(other).data for other in orders}) == 3
    on_device = task._replace(examples=jax.tree.map(jnp.asarray, task.examples))
    assert differing(identify(task), identify(on_device)) == set()


def test_a_longer_walk_is_the_same_data(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a b c d a c b d a d c b a b c d")
    fields = {"data.path": str(tmp_path / "text.txt"), "data.order": "walk"}
    found = []
    for more in ({"num_steps": 5}, {"num_steps": 9}, {"num_steps": 9, "seed": 3}):
        config = toy_config(**fields, **more)
        found.append(prediction.identify(config, make_task(config)))
    assert differing(found[0], found[1]) == set()
    assert differing(found[0], found[2]) == {"data"}


def test_any_devices_find_the_same() -> None:
    """Where batch and parameters are divided as well."""
    task = task_of(lj.lstm(64))
    wanted = identify(task)
    for count, fsdp in ((1, False), (4, False), (2, True)):
        with jax.set_mesh(devices.make_mesh(count, 4, fsdp=fsdp)):
            assert identify(task) == wanted


def cells() -> list[lj.Cell]:
    gates = own_gates(np.array([1, 2, 3, 4], np.float32))
    return [gates, zoneout(lj.gru(4), 0.1), lj.slstm(4), lj.min_lstm(4)]


# Prints what the test below finds.
PROGRAM = """
import json
from test_identity import cells, identify, task_of
for cell in cells():
    print(json.dumps(identify(task_of(cell, dropout=0.5))))
"""


def test_another_process_finds_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        | {"PYTHONHASHSEED": "7"},
    )
    for line, cell in zip(done.stdout.splitlines(), cells(), strict=True):
        found = identify(task_of(cell, dropout=0.5))
        assert line == json.dumps(found)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda task: with_loss(task, lambda loss: 100 * loss),
            "a run of another model or training loss",
        ),
        (
            lambda task: task._replace(
                init=lambda key: jax.tree.map(jnp.zeros_like, task.init(key))
            ),
            "a run of another model or initialisation",
        ),
        (
            lambda task: task._replace(splits={"all": task.splits["all"] * 2}),
            r"a run on other data \(the examples differ\)",
        ),
    ],
)
def test_another_run_in_the_same_folder_is_refused(
    tmp_path: Path, other: Any, message: str
) -> None:
    """A finished run, which would else give its old result; and longer ones."""
    config, task = toy_config(num_steps=1), toy_task()
    training.fit(config, task, tmp_path)
    before = hashes(tmp_path)
    for num_steps in (1, 2):
        config.num_steps = num_steps
        with pytest.raises(UserError, match=f"holds {message}: name another") as error:
            training.fit(config, other(task), tmp_path)
        assert "\n" not in str(error.value)
    assert hashes(tmp_path) == before
    assert training.fit(config, toy_task(), tmp_path)["step"] == 2


def test_other_versions_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, task = toy_config(num_steps=1), toy_task()
    training.fit(config, task, tmp_path)
    assert "not compared" not in capsys.readouterr().err
    path = tmp_path / "identity.json"
    fields = json.loads(path.read_text())
    assert fields["versions"]["jax"] == jax.__version__
    fields["versions"] |= {"jax": "0.9.0", "source": "0123"}
    fields["loss"] = "0" * 32
    path.write_text(json.dumps(fields))
    line = f"model, loss and data were not compared with those in {tmp_path}: the run "
    before = hashes(tmp_path)
    training.fit(config, task, tmp_path)
    said, finished = capsys.readouterr().err.splitlines()
    assert said == f"{line}was stored by another version of jax, lstm_jax"
    assert finished == "finished before, at step 1: not trained again"
    assert hashes(tmp_path) == before  # another version has trained it
    config.num_steps = 2
    training.fit(config, task, tmp_path)
    assert said in capsys.readouterr().err
    # This one has trained it now.
    assert identity.read(tmp_path) == identify(task)
    config.num_steps = 3
    training.fit(config, task, tmp_path)
    assert "not compared" not in capsys.readouterr().err
    path.unlink()
    config.num_steps = 4
    training.fit(config, task, tmp_path)
    said = capsys.readouterr().err.splitlines()[0]
    assert said == f"{line}was stored by a version that did not note them"
    assert identity.read(tmp_path) == identify(task)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "[" * 10_000, '{"data": 1}'],
)
def test_damaged_identity(tmp_path: Path, content: str) -> None:
    with workdirs.claimed(tmp_path, toy_config(), {}, identify(toy_task())):
        pass
    (tmp_path / "identity.json").write_text(content)
    with pytest.raises(UserError, match=r"identity.json is damaged: restore it"):
        training.fit(toy_config(), toy_task(), tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data", 3),
        ("inputs", {"inputs": ["float31", [2]]}),
        ("inputs", {"inputs": ["float32", [-2]]}),
        ("inputs", {"inputs": 3}),
        ("versions", []),
        ("more", "text"),
    ],
)
def test_identity_with_a_wrong_field(tmp_path: Path, field: str, value: Any) -> None:
    fields = identify(toy_task())._asdict() | {field: value}
    (tmp_path / "identity.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"identity.json is damaged: restore it"):
        identity.read(tmp_path)


TEXTS = [("a fine day", "good"), ("a dull day", "bad"), ("fine", "good"), ("no", "bad")]


@pytest.fixture
def text_run(tmp_path: Path) -> tuple[Config, Task]:
    """A config of texts, and the task that it describes."""
    path = tmp_path / "texts.csv"
    rows = [f"{text} {i},{label}" for i, (text, label) in enumerate(TEXTS * 5)]
    path.write_text("text,label\n" + "\n".join(rows))
    config = toy_config(num_steps=1, **{"data.path": str(path), "data.length": 4})
    config.task = "classify_text"
    config.data.padding = "right"
    return config, make_task(config)


def with_cell(config: Config, task: Task, cell: lj.Cell) -> Task:
    """The same task with a model of one's own, and the files of the config's."""
    vocab_size = len(json.loads(task.files["vocabulary.json"])["model"]["vocab"])
    model = make_classifier(config.model, 2, vocab_size)
    model = dataclasses.replace(model, cells=(cell,))
    train, test = task.examples[0], task.splits["test"][0]
    own = classification(
        model,
        train["inputs"],
        train["labels"],
        {"test": (test["inputs"], test["labels"], test["lengths"])},
        lengths=train["lengths"],
    )
    return own._replace(files=task.files)


def test_the_config_describes_the_model(text_run: tuple[Config, Task]) -> None:
    config, task = text_run
    found = prediction.identify(config, task)
    assert found.inputs == {"inputs": ["int32", [4, 4]], "lengths": ["int32", [4]]}
    # The same made by hand.
    own = with_cell(config, task, lj.simple_rnn(4))
    assert prediction.identify(config, own) == found
    own = prediction.identify(config, with_cell(config, task, own_gates(0.5)))
    assert (own.prediction, own.data) == (None, found.data)

    def smoothed(params: Any, examples: Any, weight: Any, key: Any, carry: Any) -> Any:
        sums, carry = task.loss(params, examples, weight, key, carry)
        squares = optax.tree.norm(params, squared=True)
        return sums | {"loss": sums["loss"] + 0.01 * squares * sums["count"]}, carry

    other = prediction.identify(config, task._replace(loss=smoothed))
    assert differing(found, other) == {"loss", "evaluation"}

    # Inputs of another name tell nothing.
    def of_words(params: Any, examples: Any, *rest: Any) -> Any:
        return task.loss(params, {"inputs": examples["words"], **examples}, *rest)

    words = {
        {"inputs": "words"}.get(name, name): array
        for name, array in task.examples[0].items()
    }
    renamed = task._replace(examples=(words,), loss=of_words)
    assert prediction.identify(config, renamed).prediction == ""


def test_a_model_of_ones_own_is_not_answered_with_the_configs(
    text_run: tuple[Config, Task], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, task = text_run
    own = with_cell(config, task, own_gates(0.5))
    training.fit(config, own, tmp_path / "run")
    params = workdirs.load_params(tmp_path / "run", 1)
    assert params["recurrent"]["layer_0"]["cell"].keys() == {
        *("kernel", "recurrent_kernel", "bias")
    }
    message = "was trained with another model than its config describes: load"
    with pytest.raises(UserError, match=message) as error:
        prediction.load(tmp_path / "run")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=message):
        serving.export_run(tmp_path / "run", tmp_path / "out")
    with pytest.raises(UserError, match=message):
        convert._read(tmp_path / "run", "simple_rnn", "torch")
    assert not (tmp_path / "out").exists()
    # Whatever the version: that which trained it has compared.
    path = tmp_path / "run" / "identity.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"versions": {"jax": "0.1"}}))
    with pytest.raises(UserError, match=message):
        prediction.load(tmp_path / "run")
    # Of a run stored before, it is not known.
    path.unlink()
    capsys.readouterr()
    assert prediction.load(tmp_path / "run").step == 1
    assert capsys.readouterr().err == (
        f"whether the config of {tmp_path / 'run'} describes the model that was "
        "trained is not known: it does not say so\n"
    )


def test_an_edited_config_is_seen(
    text_run: tuple[Config, Task], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, task = text_run
    training.fit(config, task, tmp_path / "run")
    capsys.readouterr()
    assert prediction.load(tmp_path / "run").step == 1
    assert capsys.readouterr().err == ""
    path = tmp_path / "run" / "config.json"
    text = path.read_text()
    path.write_text(text.replace('"pooling": "last"', '"pooling": "mean"'))
    with pytest.raises(UserError, match="describes now: restore"):
        prediction.load(tmp_path / "run")
    path.write_text(text.replace('"simple_rnn"', '"simple_rnn(activation=relu)"'))
    with pytest.raises(UserError, match="describes now: restore"):
        convert._read(tmp_path / "run", "simple_rnn", "torch")
    # What other versions trace is not compared, and that is told.
    path = tmp_path / "run" / "identity.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"versions": {"jax": "0.1"}}))
    assert prediction.load(tmp_path / "run").step == 1
    assert "is not known: it was stored by another version" in capsys.readouterr().err


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "next_word", "data.path": "fable.txt"},
        {"task": "language_model", "data.path": "fable.txt", "data.length": 8},
        {"task": "tag", "data.path": "synthetic:brackets", "data.padding": "right"},
        {"task": "regress", "data.path": "synthetic:waves", "model.embedding_size": 64},
    ],
    ids=lambda fields: fields["task"],
)
def test_each_task_is_described_by_its_config(fields: dict[str, Any]) -> None:
    config = toy_config(**fields, **{"model.cell": "lstm"})
    task = make_task(config)
    found = prediction.identify(config, task)
    assert found.prediction
    config.model.cell = "gru"
    other = prediction.identify(config, task)
    assert other.prediction is None
    assert differing(found, other) == {"prediction"}
