"""Tests of the task language_model and of generation with a carry."""

import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_runs import toy_config

import lstm_jax as lj
from lstm_jax import continuation, prediction, reporting, steps, training
from lstm_jax.data.reviews import PAD, START, UNKNOWN
from lstm_jax.data.streams import NO_TARGET, read_streams, rows
from lstm_jax.generation import continue_stream
from lstm_jax.models import LanguageModel
from lstm_jax.tasks import make_task
from lstm_jax.tasks.language_model import stream_logits

BATCH, STEPS = 3, 5


pytestmark = pytest.mark.usefixtures("fast_runs")


def lm_config(**fields: object) -> object:
    config = toy_config(num_steps=0, num_epochs=2)
    config.task = "language_model"
    config.batch_size = BATCH
    config.data.length = STEPS
    config.update_from_flattened_dict(fields)
    return config


def test_loss_over_batches_is_that_of_whole_rows() -> None:
    """The carry crosses batches; what pads the end of the rows counts for nothing."""
    config = lm_config()
    task = make_task(config)
    streams = read_streams(config.data)
    params = task.init(jax.random.key(0))
    size = streams.vocabulary.get_vocab_size()
    model = LanguageModel((lj.simple_rnn(4),), size, 3)
    for stream, bucket in (
        (streams.train, task.examples[0]),
        (streams.held_out, task.splits["held_out"][0]),
    ):
        sums = jax.jit(lambda p, b: steps.evaluate(task, BATCH, p, b))(params, bucket)
        whole = rows(stream, BATCH, 10_000)  # one batch of all
        _, logits = jax.jit(lambda p, i: stream_logits(model, p, i, None))(
            params, whole["inputs"]
        )
        log_p = np.asarray(jax.nn.log_softmax(logits.astype(jnp.float32)), np.float64)
        real = whole["targets"] != NO_TARGET
        chosen = np.take_along_axis(
            log_p, np.maximum(whole["targets"], 0)[..., None], -1
        )[..., 0]
        assert sums["count"] == real.sum() == len(stream) - 1
        np.testing.assert_allclose(sums["loss"], -chosen[real].sum(), rtol=1e-5)
        hits = (log_p.argmax(-1) == whole["targets"])[real].sum()
        assert sums["accuracy"] == hits


def test_start_forgets_what_was_before() -> None:
    model = LanguageModel((lj.lstm(4), lj.gru(4)), 9, 3)
    ids = jnp.array([[3, 5, START, 4, 7]])
    params = model.init(jax.random.key(0), ids)["params"]
    logits_of = jax.jit(lambda ids: stream_logits(model, params, ids, None)[1])
    logits = logits_of(ids)
    after = logits_of(jnp.pad(ids[:, 2:], ((0, 0), (0, 2))))[:, :3]
    np.testing.assert_allclose(logits[:, 2:], after, rtol=1e-6, atol=1e-7)
    other = logits_of(ids.at[0, 0].set(8))
    assert (other[0, 1] != logits[0, 1]).any()


def test_run_reports_perplexity(tmp_path: Path) -> None:
    config = lm_config(num_epochs=1)
    result = training.fit(config, make_task(config), tmp_path)
    assert result["epoch"] == 1
    loss, perplexity = result["held_out_loss"], result["held_out_perplexity"]
    assert perplexity == pytest.approx(math.exp(loss))


@pytest.mark.slow
def test_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = lm_config()
    training.fit(config, make_task(config), tmp_path / "whole")
    whole = reporting.read_metrics(tmp_path / "whole")
    # Interrupted in the middle of an epoch, with a carry that is not zero.
    first = lm_config(**{"checkpoint.every": 7, "checkpoint.keep": 100})
    training.fit(first, make_task(first), tmp_path / "part")
    for path in (tmp_path / "part" / "checkpoints").iterdir():
        if path.name.isdigit() and int(path.name) > 7:
            shutil.rmtree(path)
    training.fit(first, make_task(first), tmp_path / "part")
    part = reporting.read_metrics(tmp_path / "part")
    for a, b in zip(whole, part, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_generation_equals_the_full_pass() -> None:
    model = LanguageModel((lj.lstm(8), lj.lstm(8)), 12, 6)
    prompt = jnp.array([START, 4, START, 9, 5], jnp.int32)
    params = model.init(jax.random.key(3), prompt[None])["params"]
    params = jax.tree.map(lambda a: 3 * a, params)
    got = np.asarray(continue_stream(model, params, prompt, num_words=20))

    def check(got: np.ndarray) -> None:
        """At each step the full pass over all before; the model sees no later step."""
        ids = jnp.concatenate([prompt, jnp.asarray(got)])[None]
        logits = full_pass(params, ids)
        allowed = np.array(logits[0, len(prompt) - 1 : -1])
        allowed[:, [PAD, UNKNOWN]] = -np.inf
        assert got.tolist() == allowed.argmax(-1).tolist()

    full_pass = jax.jit(lambda params, ids: stream_logits(model, params, ids, None)[1])
    check(got)
    assert len(set(got.tolist())) > 2
    # A START among what is added forgets, as in training.
    head = params["head"]["bias"]
    params["head"]["bias"] = head.at[START].add(0.3)
    got = np.asarray(continue_stream(model, params, prompt, num_words=20))
    assert START in got[:-3]
    check(got)
    params["head"]["bias"] = head
    drawn = {
        tuple(
            continue_stream(
                model,
                params,
                prompt,
                num_words=20,
                temperature=2.0,
                key=jax.random.key(seed),
            ).tolist()
        )
        for seed in range(5)
    }
    assert len(drawn) == 5
    assert not {PAD, UNKNOWN} & {word for words in drawn for word in words}


def test_a_run_continues_text(tmp_path: Path) -> None:
    config = lm_config(**{"num_epochs": 0, "num_steps": 3, "data.level": "char"})
    task = make_task(config)._replace(demonstrate=None)
    training.fit(config, task, tmp_path / "run")
    run = prediction.load(tmp_path / "run")
    assert run.vocabulary is not None
    text = "the cat ~"  # which the fable does not hold
    longer = continuation.continue_text(run, text, continuation.Sampling(8))
    ids = run.vocabulary.encode(text).ids
    assert ids[-1] == UNKNOWN
    prompt = jnp.array([START, *ids], jnp.int32)
    added = continue_stream(run.model, run.params, prompt, num_words=8).tolist()
    if START in added:
        added = added[: added.index(START)]
    words = [run.vocabulary.id_to_token(i) for i in ids + added]
    assert longer == "".join(words)
    assert longer.startswith("the cat <UNK>")
