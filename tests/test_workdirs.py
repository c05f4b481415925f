import json
import math
from pathlib import Path

import jax
import pytest
from toy_runs import hashes, toy_config, toy_task

import lstm_jax as lj
from lstm_jax import training, workdirs
from lstm_jax.errors import UserError
from lstm_jax.tasks import make_task


def test_refused_resume_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    config = toy_config(num_steps=5)
    training.fit(config, toy_task(), tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("{torn\n" + metrics.read_text())
    before = hashes(tmp_path)
    config.num_steps = 10
    with pytest.raises(UserError, match="line 1 is not JSON"):
        training.fit(config, toy_task(), tmp_path)
    assert hashes(tmp_path) == before


def test_diverged_run_answers_with_null(tmp_path: Path) -> None:
    """JSON has no NaN."""
    fields = {"optimizer.name": "sgd", "optimizer.learning_rate": 1e38}
    config = toy_config(num_steps=5, **fields)
    task = toy_task(cells=(lj.simple_rnn(4, activation=jax.nn.relu),))
    result = training.fit(config, task, tmp_path)
    assert result["all_loss"] is None
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["split"], last["loss"]) == ("all", None)
    assert math.isfinite(last["accuracy"])


def test_other_text_of_the_same_words_is_refused(tmp_path: Path) -> None:
    text, workdir = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("a b c a b c a b c d e f")
    config = toy_config(num_steps=1, **{"data.path": str(text), "batch_size": 1})
    task = make_task(config)
    training.fit(config, task, workdir)
    text.write_text("a b c c b a a b c d e f")
    other = make_task(config)
    assert other.files["vocabulary.json"] == task.files["vocabulary.json"]
    before = hashes(workdir)
    config.num_steps = 2
    with pytest.raises(UserError, match=r"other data \(text.sha256 differs\)"):
        training.fit(config, other, workdir)
    assert hashes(workdir) == before


def test_start_that_was_killed_in_its_first_write_is_mended(tmp_path: Path) -> None:
    (tmp_path / "config.json.tmp").write_text('{"ta')
    config = toy_config()
    workdirs.claim(tmp_path, config, {})
    assert workdirs.read_config(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize("value", [None, "128", 1.5, True, [1]])
def test_field_of_another_type_is_named(tmp_path: Path, value: object) -> None:
    fields = toy_config().to_dict()
    fields["model"]["hidden_size"] = value
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"model\.hidden_size"):
        workdirs.read_config(tmp_path)
