"""Runs that start from the parameters of another run."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from reference import assert_close, assert_same_bits
from toy_runs import saved_state, toy_arrays, toy_config, toy_model, toy_task

from lstm_jax import (
    checkpoints,
    classifying,
    prediction,
    steps,
    training,
    transfer,
    workdirs,
)
from lstm_jax.config import Config
from lstm_jax.errors import UserError
from lstm_jax.tasks import Task, classification, make_task
from lstm_jax.tasks.naming import entries
from lstm_jax.tasks.task import LABELS_FILE, VOCABULARY_FILE, Named

pytestmark = pytest.mark.usefixtures("fast_runs")


def test_init_from_takes_what_matches_and_names_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A rate of zero: the parameters of a checkpoint are those that the run began with.
    config = toy_config(**{"num_steps": 1, "optimizer.learning_rate": 0.0})
    task, other = (toy_task(dense=(4,), num_classes=classes) for classes in (3, 5))
    training.fit(config, task, tmp_path / "first")
    theirs = workdirs.load_params(tmp_path / "first", 1)

    config.seed = 1
    own = jax.jit(other.init)(steps.make_keys(1).init)
    capsys.readouterr()
    training.fit(config, other, tmp_path / "second", tmp_path / "first")
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == f"starting from step 1 of {tmp_path / 'first'}"
    assert second == "not there in this shape, begun anew: head/bias, head/kernel"
    taken = workdirs.load_params(tmp_path / "second", 1)
    assert_same_bits(taken["dense_0"], theirs["dense_0"])
    assert_same_bits(taken["head"], own["head"])
    assert (taken["dense_0"]["kernel"] != own["dense_0"]["kernel"]).all()

    # All match: nothing is named. A run that goes on keeps its own.
    training.fit(config, task, tmp_path / "third", tmp_path / "first")
    assert "begun anew" not in capsys.readouterr().out
    assert_same_bits(workdirs.load_params(tmp_path / "third", 1), theirs)
    config.num_steps = 2
    training.fit(config, task, tmp_path / "third", tmp_path / "second")
    assert "starting from" not in capsys.readouterr().out
    assert_same_bits(workdirs.load_params(tmp_path / "third", 2), theirs)


def test_init_from_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run in .*nowhere \(no config.json\)"):
        training.fit(toy_config(), toy_task(), tmp_path / "run", tmp_path / "nowhere")


def test_start_that_was_interrupted_before_its_first_checkpoint_still_takes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = toy_config(**{"num_steps": 1, "optimizer.learning_rate": 0.0})
    source, workdir = tmp_path / "source", tmp_path / "run"
    training.fit(config, toy_task(), source)
    config.seed = 1
    with workdirs.claimed(workdir, config, {}):
        pass
    left = workdir / "checkpoints" / "10.orbax-checkpoint-tmp" / "state"
    left.mkdir(parents=True)
    capsys.readouterr()
    training.fit(config, toy_task(), workdir, source)
    assert f"starting from step 1 of {source}\n" in capsys.readouterr().out
    training.fit(config, toy_task(), workdir, source)
    line = (
        f"the run in {workdir} goes on with its own parameters: init_from is not read"
    )
    assert line in capsys.readouterr().err.splitlines()
    theirs = workdirs.load_params(source, 1)
    assert_same_bits(workdirs.load_params(workdir, 1), theirs)


@pytest.mark.slow
def test_average_starts_from_the_source_too(tmp_path: Path) -> None:
    fields = {"num_steps": 2, "optimizer.ema": 0.9, "optimizer.learning_rate": 0.0}
    config, task = toy_config(**fields), toy_task()
    training.fit(config, task, tmp_path / "source")
    config.seed = 1
    training.fit(config, task, tmp_path / "run", tmp_path / "source")
    theirs = workdirs.load_params(tmp_path / "source", 2)
    state = saved_state(tmp_path / "run", config, task)
    assert_close(state.params, theirs, 1e-6)
    assert_close(state.average, theirs, 1e-6)


FILLERS = ("the", "old", "mill", "stood")


def write_texts(path: Path, times: int, *classes: tuple[str, str]) -> str:
    """Texts of some fillers and a word, so many times, that gives the label."""
    rng = np.random.default_rng(0)
    rows = ["text,label"]
    for word, label in classes * 16:
        words = [*rng.choice(FILLERS, 5), *[word] * times]
        rows.append(f"{' '.join(rng.permutation(words))},{label}")
    path.write_text("\n".join(rows) + "\n")
    return str(path)


def text_config(path: str, **fields: Any) -> Config:
    """A small classifier of texts; a rate of zero, so that a run ends as it began."""
    return toy_config(
        **{
            "task": "classify_text",
            "data.path": path,
            "data.length": 10,
            "num_steps": 1,
            "batch_size": 16,
            "model.pooling": "mean",
            "optimizer.learning_rate": 0.0,
            **fields,
        }
    )


def store(folder: Path, config: Config, task: Task) -> Any:
    """Leaves a run that was not trained; its parameters."""
    state = fresh(config, task)
    folder.mkdir()
    workdirs.store(folder, config, task.files)
    with checkpoints.open_checkpoints(folder, keep=1) as opened:
        checkpoints.save(opened, 1, state, {"metrics": {}})
    return state.params


def fresh(config: Config, task: Task) -> steps.TrainState:
    """The state that a run begins with where it starts from no other."""
    stepping, keys = steps.make_stepping(config, task), steps.make_keys(config.seed)
    return jax.jit(lambda: steps.init_state(stepping, keys))()


def begun(source: Path, config: Config, task: Task) -> tuple[Any, Any]:
    """The parameters that a run begins with from another one, and without it."""
    state = fresh(config, task)
    taken = transfer.load(source, source / "new", task, state.params)
    return transfer.begun_from(taken, state).params, state.params


def words_of(folder: Path | Task) -> tuple[str, ...]:
    file = VOCABULARY_FILE
    if isinstance(folder, Task):
        return entries(file, folder.files[file])
    return entries(file, (folder / file).read_text())


def test_words_are_matched_by_their_names(tmp_path: Path) -> None:
    classes = ("delight", "up"), ("gloom", "down")
    first = write_texts(tmp_path / "a.csv", 1, *classes)
    fields = {"num_steps": 60, "optimizer.learning_rate": 0.1}
    source, config = tmp_path / "source", text_config(first, **fields)
    result = training.fit(config, make_task(config), source)
    assert result["test_accuracy"] == 1
    # The words that tell are the rarest there, and the commonest here.
    second = write_texts(tmp_path / "b.csv", 3, *classes)
    config = text_config(second, seed=1)
    assert {*words_of(source)[-2:]} == {"delight", "gloom"}
    assert {*words_of(make_task(config))[3:5]} == {"delight", "gloom"}
    result = training.fit(config, make_task(config), tmp_path / "run", source)
    assert result["test_accuracy"] == 1
    assert result["test_loss"] < 0.05
    # And it answers as the other one, word by word.
    texts = ["delight mill", "old gloom", "the stood old"]
    answers = [
        [tuple(a)[:2] for a in classifying.classify_texts(prediction.load(run), texts)]
        for run in (source, tmp_path / "run")
    ]
    assert [label for label, _ in answers[0]] == [label for label, _ in answers[1]]
    shares = [[share for _, share in found] for found in answers]
    np.testing.assert_allclose(shares[0], shares[1], rtol=1e-5)


def test_new_words_and_labels_begin_anew_and_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # As numbers the labels are in another order than as text.
    path = write_texts(tmp_path / "a.csv", 1, ("delight", "10"), ("gloom", "9"))
    source, config = tmp_path / "source", text_config(path)
    theirs = store(source, config, make_task(config))
    words = words_of(source)
    assert json.loads((source / LABELS_FILE).read_text()) == ["9", "10"]

    more = ("gloom", "9"), ("so", "even"), ("delight", "10"), ("a b c d e f", "9")
    path = write_texts(tmp_path / "b.csv", 2, *more)
    config = text_config(path, seed=1)
    task = make_task(config)
    assert json.loads(task.files[LABELS_FILE]) == ["10", "9", "even"]
    params, own = begun(source, config, task)
    lines = capsys.readouterr().out.splitlines()
    table = params["embedding"]["embedding"]
    new = []
    for number, word in enumerate(words_of(task)):
        if word in words:
            expected = theirs["embedding"]["embedding"][words.index(word)]
        else:
            expected = own["embedding"]["embedding"][number]
            new.append(word)
        assert_same_bits(table[number], expected)
    for number, theirs_number in ((0, 1), (1, 0)):
        for field in ("kernel", "bias"):
            expected = theirs["head"][field][..., theirs_number]
            assert_same_bits(params["head"][field][..., number], expected)
    assert_same_bits(params["head"]["kernel"][:, 2], own["head"]["kernel"][:, 2])
    assert_same_bits(params["recurrent"], theirs["recurrent"])
    assert sorted(new) == ["a", "b", "c", "d", "e", "f", "so"]
    shown = ", ".join(map(repr, new[:5]))
    assert lines[1:] == [
        f"7 of 16 names in vocabulary.json are not in that of {source}, begun anew in "
        f"embedding/embedding: {shown} and 2 more",
        f"1 of 3 names in labels.json are not in that of {source}, begun anew in "
        "head/bias, head/kernel: 'even'",
    ]


def test_a_language_model_gives_its_words_to_a_classifier_and_no_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("the old mill stood . " * 20)
    source = tmp_path / "source"
    config = toy_config(**{"task": "language_model", "data.length": 4})
    config.data.path = str(tmp_path / "text.txt")
    theirs = store(source, config, make_task(config))
    # Four classes more, and its head would have the language model's shape.
    classes = [(f"w{i}", f"l{i}") for i in range(8)]
    assert theirs["head"]["bias"].shape == (8,)
    config = text_config(write_texts(tmp_path / "a.csv", 1, *classes), seed=1)
    task = make_task(config)
    params, own = begun(source, config, task)
    assert_same_bits(params["head"], own["head"])
    at = [words_of(folder).index("mill") for folder in (task, source)]
    assert_same_bits(
        params["embedding"]["embedding"][at[0]], theirs["embedding"]["embedding"][at[1]]
    )
    lines = capsys.readouterr().out.splitlines()
    assert (
        "named by labels.json here alone, begun anew: head/bias, head/kernel" in lines
    )


@pytest.mark.parametrize("same", [True, False])
def test_logit_of_two_classes_in_another_order_has_another_sign(
    same: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def task_of(*labels: str) -> Task:
        axes = {"head/kernel": 1, "head/bias": 0}
        inputs, classes = toy_arrays()
        return classification(toy_model(num_classes=1), inputs, classes % 2)._replace(
            files={LABELS_FILE: json.dumps(labels)},
            names={name: Named(LABELS_FILE, axis) for name, axis in axes.items()},
        )

    source, config = tmp_path / "source", toy_config(task="custom")
    theirs = store(source, config, task_of("p\u00e9ssimo", "good"))
    config.seed = 1
    # One label, spelt in another way.
    labels = ["pe\u0301ssimo", "good"]
    task = task_of(*labels) if same else task_of(*labels[::-1])
    params, own = begun(source, config, task)
    sign = 1 if same else -1
    assert_same_bits(params["head"]["kernel"], sign * theirs["head"]["kernel"])
    assert "anew" not in capsys.readouterr().out
    # Two other classes are another question.
    params, own = begun(source, config, task_of("bad", "good"))
    assert_same_bits(params["head"], own["head"])
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"1 of 2 names in labels.json are not in that of {source}, begun anew in "
        "head/bias, head/kernel: 'bad'"
    ]


def test_words_that_are_fed_as_numbers_need_the_same_numbers(tmp_path: Path) -> None:
    source = tmp_path / "source"
    classes = ("delight", "up"), ("gloom", "down")
    path = write_texts(tmp_path / "a.csv", 1, *classes)
    config = text_config(path, **{"model.embedding_size": 0, "seed": 0})
    theirs = store(source, config, make_task(config))
    config.seed = 1
    config.data.vocab_size = 6  # the first words, which are numbered alike
    params, _ = begun(source, config, make_task(config))
    assert_same_bits(params["recurrent"], theirs["recurrent"])
    config.data.path = write_texts(tmp_path / "b.csv", 3, *classes)
    with pytest.raises(
        UserError, match=r"number 3 is '\w+' here and '\w+' in .*/source"
    ):
        begun(source, config, make_task(config))


def test_own_task_without_names_takes_entries_by_number_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    path = write_texts(tmp_path / "a.csv", 1, ("delight", "up"), ("gloom", "down"))
    config = text_config(path)
    task = make_task(config)
    theirs = store(source, config, task)
    params, _ = begun(source, config, task._replace(names={}, files={}))
    assert_same_bits(params, theirs)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == (
        "taken over by number, as this task names no entries: embedding/embedding, "
        "head/bias, head/kernel"
    )


def test_names_of_the_source_that_are_lost_or_damaged(tmp_path: Path) -> None:
    source = tmp_path / "source"
    path = write_texts(tmp_path / "a.csv", 1, ("delight", "up"), ("gloom", "down"))
    config = text_config(path)
    task = make_task(config)
    theirs = store(source, config, task)
    (source / VOCABULARY_FILE).write_text("{}")
    with pytest.raises(UserError, match=r"vocabulary.json is damaged .*: restore it"):
        begun(source, config, task)
    (source / VOCABULARY_FILE).unlink()
    config.seed = 1
    params, own = begun(source, config, task)
    assert_same_bits(params["embedding"], own["embedding"])
    assert_same_bits(params["head"], theirs["head"])
