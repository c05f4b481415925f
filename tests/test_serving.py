"""Tests of exported runs: they answer as predict.py does, or say what is wrong."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_runs import (
    LAST,
    READS_CONFIG,
    Finished,
    Trained,
    assert_user_error,
    contents,
)
from documents import code_blocks
from jax import export
from PIL import Image
from toy_runs import toy_config

from lstm_jax import (
    checkpoints,
    classifying,
    continuation,
    prediction,
    serving,
    workdirs,
)
from lstm_jax.data.reviews import START, encode_texts, train_vocabulary
from lstm_jax.generation import continue_stream
from lstm_jax.model_config import make_classifier, make_language_model
from lstm_jax.nested import named_leaves
from lstm_jax.prediction import Run
from lstm_jax.tasks import make_task
from lstm_jax.tasks.classification import predict_probabilities
from lstm_jax.tasks.classify_text import encoded
from lstm_jax.weights import load_weights

# Sizes are symbols while a program is exported, and annotated as int.
pytestmark = [
    READS_CONFIG,
    pytest.mark.usefixtures("fast_runs", "unchecked_types"),
]

TEXTS = ["a b c", "b", "c a d d e e e a b c", "e unheard a"]


def random_run(task: str, make: Any, inputs: Any, seed: int = 0, **fields: Any) -> Run:
    """A run of random parameters, none of them zero."""
    config = toy_config(**fields)
    config.task = task
    vocabulary = train_vocabulary(TEXTS) if inputs.dtype == jnp.int32 else None
    model = make(config.model, vocabulary and vocabulary.get_vocab_size())
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), inputs)["params"])
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=a.shape, scale=1.5), a.dtype), shapes
    )
    labels = () if task == "language_model" else ("no", "yes")
    return Run(config, model, params, vocabulary, labels, 7)


def again(program: serving.Program) -> export.Exported:
    return export.deserialize(bytearray(serving.serialize(program.exported)))


@pytest.mark.parametrize(
    ("padding", "fields"),
    [
        ("front", {"model.head": "sigmoid", "model.cell": "gru"}),
        ("right", {"model.pooling": "max", "model.bidirectional": True}),
        pytest.param("right", {"model.cell": "min_gru"}, marks=pytest.mark.slow),
        pytest.param("right", {"model.pooling": "mean"}, marks=pytest.mark.slow),
        pytest.param("front", {"model.num_layers": 2}, marks=pytest.mark.slow),
    ],
)
def test_texts_are_classified(padding: str, fields: dict[str, Any]) -> None:
    fields = {"data.length": 6, "data.padding": padding, **fields}
    run = random_run(
        "classify_text",
        lambda model, size: make_classifier(model, 2, size),
        jnp.zeros((1, 6), jnp.int32),
        **fields,
    )
    assert run.vocabulary is not None
    size = run.vocabulary.get_vocab_size()
    examples = encoded(run.config, encode_texts(run.vocabulary, TEXTS), size)
    expected = predict_probabilities(run.model, run.params, examples)
    (program,) = serving.programs(run).values()
    assert program.arguments == ("ids", "lengths")[: len(examples)]
    weights = named_leaves(run.params)
    given = list(examples.values())
    found = again(program).call(weights, *given)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    if padding == "right":  # what lies past the lengths is nothing, however long
        given[0] = np.pad(given[0], ((0, 0), (0, 3)), constant_values=4)
        found = again(program).call(weights, *given)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_images_are_classified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run = random_run(
        "classify_images",
        lambda model, _: make_classifier(model, 3, None),
        jnp.zeros((1, 28, 28)),
        **{"model.embedding_size": 64},
    )
    images = np.random.default_rng(0).random((3, 28, 28)).astype(np.float32)
    found = again(serving.programs(run)["predict"]).call(
        named_leaves(run.params), images
    )
    expected = predict_probabilities(run.model, run.params, {"inputs": images})
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # And from a file, by the page's program, as predict.py answers.
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(1).integers(0, 256, (28, 28), np.uint8)
    Image.fromarray(pixels).save("digit.png")
    run = run._replace(labels=("a", "b", "c"))
    monkeypatch.setattr(prediction, "load", lambda workdir, step: run)
    serving.export_run("anywhere", "exported_mnist")
    manifest = json.loads(Path("exported_mnist/manifest.json").read_text())
    assert manifest["image"] == {"range": [0, 1], "polarity": "light on dark"}
    exec(code_blocks("serving.md", "python")[1], {})
    label, probability = capsys.readouterr().out.split()
    answer = classifying.classify_image(run, "digit.png")
    assert label == answer.label
    assert float(probability) == pytest.approx(answer.probability, rel=1e-5)


def test_a_text_is_continued_word_by_word() -> None:
    """As generation does; a carry of anything before the start changes nothing."""
    run = random_run(
        "language_model",
        make_language_model,
        jnp.zeros((1, 1), jnp.int32),
        **{
            "model.cell": "learned_initial_carry(lstm)",
            "model.num_layers": 2,
            "model.hidden_size": 8,
        },
    )
    found = serving.programs(run)
    read, step = (jax.jit(again(found[name]).call) for name in ("read", "step"))
    weights, prompt = named_leaves(run.params), jnp.array([START, 4, START, 3])
    shapes = jax.tree.unflatten(
        found["step"].exported.in_tree, found["step"].exported.in_avals
    )[0][2]
    carry = {name: jnp.full((1, *a.shape[1:]), 9.0) for name, a in shapes.items()}
    logits, carry = read(weights, prompt[None], carry)
    likeliest = []
    last = logits[:, -1]
    for _ in range(8):
        likeliest.append(int(last[0].at[jnp.array([0, 2])].set(-jnp.inf).argmax()))
        last, carry = step(weights, jnp.array(likeliest[-1:]), carry)
    expected = continue_stream(run.model, run.params, prompt, num_words=8)
    assert likeliest == expected.tolist()
    assert len(set(likeliest)) > 1
    # And the numbers, of the whole text at once.
    whole = jnp.array([[*prompt.tolist(), *likeliest]])
    again_logits, _ = read(weights, whole, jax.tree.map(jnp.zeros_like, carry))
    np.testing.assert_allclose(again_logits[:, -1], last, atol=1e-5)


SCRIPT = "lstm_jax/export.py"


def test_command(
    trained: Trained,
    tmp_path: Path,
    call: Callable[..., Finished],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "some" / "exported"
    before = contents(trained.workdir)
    monkeypatch.setenv("HOME", str(tmp_path))
    done = call(SCRIPT, f"--workdir={trained.workdir}", "--out=~/some/exported")
    assert done.code == 0, done.err
    assert contents(trained.workdir) == before
    names = {"manifest.json", "predict.jax", "vocabulary.json", "weights.safetensors"}
    assert {path.name for path in out.iterdir()} == names
    run = prediction.load(trained.workdir)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["step"] == run.step != LAST  # the best, as predict.py answers
    assert manifest["programs"]["predict"] == {
        "file": "predict.jax",
        "call": "logits = predict.call(weights, ids)",
        "arguments": {"ids": {"dtype": "int32", "shape": ["batch", 3]}},
        "results": {"logits": {"dtype": "float32", "shape": ["batch", 112]}},
    }
    assert manifest["text"] == {
        "vocabulary": "vocabulary.json",
        "size": 112,
        "window": 3,
    }
    assert manifest["image"] is None
    weights = load_weights(out / "weights.safetensors")
    jax.tree.map(np.testing.assert_array_equal, weights, run.params)
    ids = np.arange(12, dtype=np.int32).reshape(4, 3)
    program = export.deserialize(bytearray((out / "predict.jax").read_bytes()))
    expected = jax.jit(run.model.apply)({"params": run.params}, ids)
    found = program.call(named_leaves(weights), ids)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # What is there stays.
    written = contents(out)
    done = call(
        SCRIPT, f"--workdir={trained.workdir}", f"--out={out}", f"--step={LAST}"
    )
    assert_user_error(done, f"{out} holds something", "--out")
    assert contents(out) == written


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (("--workdir=/no/run", "--out={tmp}/a"), ("no run in /no/run",)),
        (("--out={tmp}/a",), ("--workdir",)),
        (("--workdir={run}",), ("--out",)),
        (("--workdir={run}", "--out={run}"), ("holds something", "--out")),
        (("--workdir={run}", "--out={tmp}/file"), ("holds something", "--out")),
        (("--workdir={run}", "--out={tmp}/file/a"), ("cannot write", "--out")),
        (("--workdir={run}", "--out={tmp}/a", "--step=3"), ("no checkpoint", "2, 4")),
        (("--workdir={run}", "--out={tmp}/a", "--stp=3"), ("'stp'",)),
    ],
)
def test_errors_of_the_command(
    arguments: tuple[str, ...],
    fragments: tuple[str, ...],
    trained: Trained,
    tmp_path: Path,
    call: Callable[..., Finished],
) -> None:
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path), contents(trained.workdir)
    given = [a.format(run=trained.workdir, tmp=tmp_path) for a in arguments]
    assert_user_error(call(SCRIPT, *given), *fragments)
    assert (contents(tmp_path), contents(trained.workdir)) == before


def test_the_package_of_the_extra_is_named(
    trained: Trained,
    tmp_path: Path,
    call: Callable[..., Finished],
    monkeypatch: Any,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = call(SCRIPT, f"--workdir={trained.workdir}", f"--out={tmp_path}/a")
    assert_user_error(done, "flatbuffers is not installed: pip install -e '.[export]'")
    assert not [*tmp_path.iterdir()]


def run_command(
    number: int, task: str, length: int, call: Callable[..., Finished]
) -> prediction.Run:
    """A command of docs/serving.md, and a small run of the name that it exports."""
    Path("reviews.csv").write_text(
        "text,label\n" + "i liked it,good\nthe movie was dull,bad\n" * 10
    )
    python, m, module, *arguments = shlex.split(
        code_blocks("serving.md", "bash")[number]
    )
    assert (python, m, module) == ("python", "-m", "lstm_jax.export")
    workdir = Path(arguments[0].removeprefix("--workdir="))
    config = toy_config(**{"data.path": "reviews.csv", "data.length": length})
    config.task = task
    save_untrained(config, workdir)
    done = call(SCRIPT, *arguments)
    assert done.code == 0, done.err
    return prediction.load(workdir)


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("empty_folder")
def test_the_page_classifies(call: Callable[..., Finished]) -> None:
    run = run_command(0, "classify_text", 8, call)
    answer = loaded(code_blocks("serving.md", "python")[0]).split()
    expected = next(classifying.classify_texts(run, ["i really liked the movie"]))
    assert answer[0] == expected.label
    assert float(answer[1]) == pytest.approx(expected.probability, rel=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("empty_folder")
def test_the_page_continues(call: Callable[..., Finished]) -> None:
    run = run_command(1, "language_model", 3, call)
    sampling = continuation.Sampling(num_words=20)
    text = continuation.continue_text(run, "the movie", sampling)
    assert loaded(code_blocks("serving.md", "python")[2]).split() == text.split()


@pytest.mark.usefixtures("empty_folder")
def test_the_page_exports_a_cell() -> None:
    *_, block = code_blocks("serving.md", "python")
    exec(block, {})
    weights = named_leaves(load_weights("cell.safetensors"))
    for name in ("step", "sequence"):
        program = export.deserialize(bytearray(Path(f"{name}.jax").read_bytes()))
        (taken, *_), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
        assert set(weights) == set(taken)


class Untrained(NamedTuple):
    params: Any
    average: tuple[()] = ()


def save_untrained(config: Any, workdir: Path) -> None:
    """A run whose one checkpoint is what training would begin with."""
    task = make_task(config)
    workdir.mkdir(parents=True)
    workdirs.store(workdir, config, task.files)
    params = jax.jit(task.init)(jax.random.key(0))
    with checkpoints.open_checkpoints(workdir, keep=1) as opened:
        checkpoints.save(opened, 1, Untrained(params), {"metrics": {}})


def loaded(program: str) -> str:
    """What a program prints in a process that searches the installed packages alone."""
    ends = "\nimport sys\nassert 'lstm_jax' not in sys.modules\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program + ends],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
