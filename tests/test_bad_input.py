"""Input of one's own that is odd but no mistake trains; what no other test file shows.

What is refused, and in which words: test_command_line.py, test_tables.py,
test_series.py, test_tag.py, test_text.py, test_classification.py, test_not_finite.py.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from command_runs import READS_CONFIG, TINY, Finished, assert_user_error
from toy_runs import (
    logits_of,
    losses_and_hits,
    ragged_arrays,
    toy_arrays,
    toy_config,
    toy_model,
)

import lstm_jax as lj
from lstm_jax import training, workdirs
from lstm_jax.tasks import classification

pytestmark = [READS_CONFIG, pytest.mark.usefixtures("fast_runs")]


def test_a_batch_larger_than_the_data(tmp_path: Path) -> None:
    """What pads it counts for nothing."""
    inputs, labels = toy_arrays(3)
    results = []
    for batch_size in (3, 50):
        task = classification(toy_model(), inputs, labels, {"all": (inputs, labels)})
        config = toy_config(batch_size=batch_size, num_steps=5)
        workdir = tmp_path / str(batch_size)
        results.append(training.fit(config, task, workdir))
        losses, hits = losses_and_hits(
            logits_of(workdirs.load_params(workdir, 5), inputs), labels
        )
        assert results[-1]["all_loss"] == pytest.approx(losses.mean(), rel=1e-5)
        assert results[-1]["all_accuracy"] == pytest.approx(hits.mean())
    assert results[0]["epoch"] == results[1]["epoch"] == 5
    assert results[0]["all_loss"] == pytest.approx(results[1]["all_loss"], rel=1e-5)


def test_sequences_without_a_step(tmp_path: Path) -> None:
    """Only the head's bias can learn from them, and content is not looked at."""
    inputs, labels, _ = ragged_arrays()
    inputs[:] = np.nan
    lengths = np.zeros(len(labels), np.int32)
    split = (inputs, labels, lengths)
    model = toy_model(cells=(lj.simple_rnn(2),))
    task = classification(
        model, inputs, labels, {"all": split}, lengths=lengths, buckets=2
    )
    training.fit(toy_config(num_steps=200), task, tmp_path)
    params = workdirs.load_params(tmp_path, 200)
    shares = np.bincount(labels, minlength=3) / len(labels)
    found = jax.nn.softmax(params["head"]["bias"])
    np.testing.assert_allclose(found, shares, atol=0.05)


def test_nan_among_the_inputs_ends_in_one_line(tmp_path: Path) -> None:
    inputs, labels, _ = ragged_arrays()
    inputs[4, 2, 1] = np.nan
    task = classification(toy_model(pooling="mean"), inputs, labels)
    with pytest.raises(ValueError, match="first in the batch's inputs") as error:
        training.fit(toy_config(num_steps=5), task, tmp_path)
    assert "\n" not in str(error.value)
    assert json.loads((tmp_path / "not_finite.json").read_text())["time"] == 2


CLASSIFY = ("--config.task=classify_text", "--config.data.path={folder}/own.csv")
TAG = ("--config.task=tag", "--config.data.path={folder}/own.csv")
TAG += ("--config.data.padding=right",)


@pytest.mark.parametrize(
    ("content", "arguments", "fragments"),
    [
        (b"text,label\nfine,1\nbad,0\n", CLASSIFY, ("label of its own", "more rows")),
        (b"text,label\na,1\nb,1\n", CLASSIFY, ("all labels are '1'", "two classes")),
        (b"text,stars\na,1\n", CLASSIFY, ("no column 'label'", "'text', 'stars'")),
        (b"text,label\na\0,1\n", CLASSIFY, ("line 2: a NUL byte", "plain UTF-8")),
        (b"text,label\n!,1\n?,0\n!,1\n?,0\n", CLASSIFY, ("hold no word",)),
        (b"text,label\n" + b"x" * 10**6, CLASSIFY, ("line 2: 1 fields", "header")),
        (b"a\tA\n", TAG, ("is one sequence", "blank lines")),
        (b"a\tA\n\nb\tA\n", TAG, ("all labels are 'A'", "at least two")),
    ],
    ids=range(8),
)
def test_files_that_no_classifier_can_be_trained_on(
    content: bytes,
    arguments: tuple[str, ...],
    fragments: tuple[str, ...],
    tmp_path: Path,
    call: Callable[..., Finished],
) -> None:
    (tmp_path / "own.csv").write_bytes(content)
    given: list[Any] = [argument.format(folder=tmp_path) for argument in arguments]
    best = "--config.checkpoint.best="
    done = call("train.py", f"--workdir={tmp_path / 'run'}", *TINY, best, *given)
    assert_user_error(done, *fragments)
    assert not (tmp_path / "run").exists()
