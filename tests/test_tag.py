"""Tests of lstm_jax.tasks.tag."""

import functools
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer
from toy_runs import toy_config

from lstm_jax import steps
from lstm_jax.config import Config
from lstm_jax.data.brackets import Tagged, brackets
from lstm_jax.data.reviews import train_vocabulary
from lstm_jax.data.tagged import load_tagged, read_tagged, tagged_rows
from lstm_jax.errors import UserError
from lstm_jax.tasks.tag import tag
from lstm_jax.tasks.task import Task
from lstm_jax.training import fit

WORDS = ["Ann", "ann", "U.S.", "10,5", "日本", "<PAD>", "<UNK>", ",", "\ufeffx", "d'"]


def random_tagged(count: int, seed: int, longest: int = 9) -> Tagged:
    """Sequences in which a word's label says whether the word before is the same."""
    rng = np.random.default_rng(seed)
    words, labels = [], []
    for length in rng.integers(1, longest + 1, count):
        chosen = [WORDS[i] for i in rng.integers(0, 3, length)]
        chosen[-1] = WORDS[rng.integers(len(WORDS))]
        words.append(chosen)
        same = [a == b for a, b in itertools.pairwise(chosen)]
        labels.append(["first", *("same" if s else "other" for s in same)])
    return Tagged(words, labels)


def write(path: Path, tagged: Tagged) -> str:
    lines = [
        "".join(f"{w}\t{label}\n" for w, label in zip(words, labels, strict=True))
        for words, labels in zip(*tagged, strict=True)
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return toy_config(
        **{
            "task": "tag",
            "data.path": write(tmp_path / "train.conll", random_tagged(60, 0)),
            "data.padding": "right",
        }
    )


def by_hand(params: Any, tagged: Tagged, task: Task) -> tuple[float, float, int]:
    """Mean loss and accuracy over the words, and their number, in NumPy."""
    vocabulary = Tokenizer.from_str(task.files["vocabulary.json"])
    names = json.loads(task.files["labels.json"])
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    cell, head = params["recurrent"]["layer_0"]["cell"], params["head"]
    losses, hits = [], []
    for words, labels in zip(*tagged, strict=True):
        h = np.zeros(4)
        for word, label in zip(words, labels, strict=True):
            number = vocabulary.token_to_id(word.replace("\ufeff", ""))  # unseen
            number = 2 if number is None or number < 2 else number
            x = params["embedding"]["embedding"][number]
            h = np.tanh(
                x @ cell["kernel"] + h @ cell["recurrent_kernel"] + cell["bias"]
            )
            logits = h @ head["kernel"] + head["bias"]
            true = names.index(label)
            losses.append(np.log(np.exp(logits).sum()) - logits[true])
            hits.append(np.argmax(logits) == true)
    return float(np.mean(losses)), float(np.mean(hits)), len(losses)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(
    ("buckets", "batch_size"), [pytest.param(1, 5, marks=pytest.mark.slow), (3, 4)]
)
def test_loss_and_accuracy_are_those_of_all_words(
    config: Config, buckets: int, batch_size: int
) -> None:
    config.data.buckets = buckets
    task = tag(config)
    test = load_tagged(config.data)[1]
    assert len(test.words) == 12
    params = jax.jit(task.init)(jax.random.key(3))
    measure = jax.jit(functools.partial(steps.evaluate, task, batch_size))
    split = jax.device_put(task.splits["test"])
    assert len(split) == buckets
    # Widths that differ, and a last batch that is padded.
    assert len({bucket["inputs"].shape[1] for bucket in split}) == buckets
    assert any(len(bucket["lengths"]) % batch_size for bucket in split)
    sums = steps.total([measure(params, bucket) for bucket in split])
    loss, accuracy, count = by_hand(params, test, task)
    assert float(sums["count"]) == count == sum(map(len, test.words))
    np.testing.assert_allclose(sums["loss"] / sums["count"], loss, rtol=1e-5)
    np.testing.assert_allclose(sums["accuracy"] / sums["count"], accuracy, rtol=1e-6)


@pytest.mark.usefixtures("strict")
def test_padding_counts_for_nothing(config: Config) -> None:
    config.model.bidirectional = True
    task = tag(config)
    params = jax.jit(task.init)(jax.random.key(3))
    batch = jax.tree.map(lambda a: np.array(a[:6]), task.examples[0])
    weight = jnp.array([1.0, 1, 1, 1, 0, 0])

    @jax.jit
    def measure(params: Any, batch: Any) -> Any:
        sums = task.loss(params, batch, weight, None, ())[0]
        return sums, jax.grad(
            lambda params: task.loss(params, batch, weight, None, ())[0]["loss"]
        )(params)

    before = measure(params, batch)
    assert float(before[0]["count"]) == batch["lengths"][:4].sum()
    steps_of = np.arange(batch["inputs"].shape[1])
    padding = steps_of >= batch["lengths"][:, None]
    assert padding[:4].any()
    for field in ("inputs", "labels"):
        assert (batch[field][padding] == 0).all()
        batch[field][padding] = 2
        batch[field][4:] = 1
    batch["lengths"][4:] = 1
    after = measure(params, batch)
    jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.parametrize("length", [1, 4, 9, 50])
def test_rows_hold_every_word_and_its_label(length: int) -> None:
    tagged = random_tagged(50, 1)
    texts = [" ".join(words) for words in random_tagged(9, 2).words]
    vocabulary = train_vocabulary(texts, r"\S+", normalizer=None)
    known = vocabulary.get_vocab()
    names = ["other", "same", "first"]
    ids, lengths, labels = tagged_rows(tagged, vocabulary, names, length)
    expected = []
    for words, tags in zip(*tagged, strict=True):
        pairs = [
            (max(known.get(word, 2), 2), names.index(label))
            for word, label in zip(words, tags, strict=True)
        ]
        expected += [pairs[i : i + length] for i in range(0, len(pairs), length)]
    assert ids.dtype == lengths.dtype == labels.dtype == np.int32
    assert ids.shape == labels.shape == (len(expected), min(length, 9))
    assert lengths.tolist() == [len(pairs) for pairs in expected]
    for row, pairs in enumerate(expected):
        assert list(zip(ids[row], labels[row], strict=True))[: len(pairs)] == pairs
        assert not ids[row, len(pairs) :].any()
        assert not labels[row, len(pairs) :].any()
    assert (ids == 2).sum() > 3


def test_own_file_is_split_by_sequences(config: Config, tmp_path: Path) -> None:
    whole = random_tagged(60, 0)
    train, test = load_tagged(config.data)
    assert (len(train.words), len(test.words)) == (48, 12)
    # Every sequence is on one side, in the order of the file.
    pairs = [list(zip(*part, strict=True)) for part in (whole, train, test)]
    assert sorted(map(str, pairs[1] + pairs[2])) == sorted(map(str, pairs[0]))
    assert load_tagged(config.data) == (train, test)

    config.data.test_path = write(tmp_path / "test.conll", random_tagged(7, 1))
    assert load_tagged(config.data) == (whole, random_tagged(7, 1))

    config.data.holdout = 0.25
    task = tag(config)
    assert {name: len(part[0]["lengths"]) for name, part in task.splits.items()} == {
        "validation": 15,
        "test": 7,
    }
    assert len(task.examples[0]["lengths"]) == 45
    total = sum(map(len, whole.words))
    counted = [task.examples[0]["lengths"], task.splits["validation"][0]["lengths"]]
    assert sum(lengths.sum() for lengths in counted) == total


def test_vocabulary_is_that_of_the_training_part(
    config: Config, tmp_path: Path
) -> None:
    unseen = Tagged([["Zed", "Ann"]], [["first", "other"]])
    config.data.test_path = write(tmp_path / "test.conll", unseen)
    train, _ = load_tagged(config.data)
    task = tag(config)
    vocabulary = Tokenizer.from_str(task.files["vocabulary.json"]).get_vocab()
    words = {w.replace("\ufeff", "") for words in train.words for w in words}
    assert set(vocabulary) == {"<PAD>", "<START>", "<UNK>"} | words
    assert {"Ann", "ann"} <= words
    assert json.loads(task.files["labels.json"]) == ["first", "other", "same"]
    config.data.vocab_size = 5
    capped = tag(config)
    vocabulary = Tokenizer.from_str(capped.files["vocabulary.json"]).get_vocab()
    assert len(vocabulary) == 5
    assert capped.examples[0]["inputs"].max() == 4
    assert capped.files["data.sha256"] != task.files["data.sha256"]
    assert tag(config).files == capped.files


def test_a_run_learns_and_shows_what_it_says(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.batch_size = 8
    config.num_steps = 200
    config.model.hidden_size = 12
    config.model.embedding_size = 8
    config.report.every = 100
    config.data.path = write(tmp_path / "long.conll", random_tagged(150, 4))
    task = tag(config)
    result = fit(config, task, tmp_path / "run")
    assert result["test_accuracy"] > 0.9
    line = capsys.readouterr().out.strip().split("\n")[-1]
    test = load_tagged(config.data)[1]
    shown = line.replace(" (is ", "(").split(" ")
    assert [word.rsplit("/", 1)[0] for word in shown] == test.words[0]
    for word, true in zip(shown, test.labels[0], strict=True):
        said = word.rsplit("/", 1)[1]
        assert said == true or said.endswith(f"({true})")
    for name in ("vocabulary.json", "labels.json", "data.sha256"):
        assert (tmp_path / "run" / name).read_text() == task.files[name]


def test_demonstration_names_what_is_wrong(config: Config) -> None:
    task = tag(config)
    params = jax.jit(task.init)(jax.random.key(0))
    # A head that always says the last label, "same".
    params = jax.tree.map(jnp.zeros_like, params)
    params["head"]["bias"] = jnp.array([0.0, 0, 1])
    test = load_tagged(config.data)[1]
    assert task.demonstrate is not None
    assert task.demonstrate(params) == " ".join(
        f"{word}/same" + ("" if label == "same" else f" (is {label})")
        for word, label in zip(test.words[0], test.labels[0], strict=True)
    )


def test_brackets_are_a_task(config: Config) -> None:
    config.data.path = "synthetic:brackets"
    config.data.buckets = 3
    assert load_tagged(config.data) == (brackets("train"), brackets("test"))
    task = tag(config)
    assert len(task.examples) == len(task.splits["test"]) == 3
    assert sum(len(bucket["lengths"]) for bucket in task.examples) == 8000
    assert json.loads(task.files["labels.json"]) == [
        *("depth0", "depth1", "depth2", "depth3", "right", "wrong")
    ]
    first = task.splits["test"][0]
    vocabulary = Tokenizer.from_str(task.files["vocabulary.json"])
    strings = ["".join(signs) for signs in brackets("test").words]
    row = first["inputs"][0, : first["lengths"][0]]
    assert "".join(str(vocabulary.id_to_token(i)) for i in row.tolist()) in strings


def test_a_file_in_two_columns(tmp_path: Path) -> None:
    path = tmp_path / "tags.txt"
    path.write_bytes(
        "\ufeff\r\n \nThe\tDT\r\n New \t  NN P\n\n\n\nx\u2028".encode()
        + "y\tZ\u2028\n".encode()
    )
    with pytest.raises(UserError, match=r"line 8: the word 'x\\u2028y' holds a space"):
        read_tagged(str(path))
    path.write_bytes("\ufeff\r\n \nThe\tDT\r\n New \t  NN P\n\n \nx\tY".encode())
    assert read_tagged(str(path)) == (
        [["The", "New"], ["x"]],
        [["DT", "NN P"], ["Y"]],
    )
    path.write_bytes(b"a\tB\rc\tD\r\re\tF\r")
    assert read_tagged(str(path)).words == [["a", "c"], ["e"]]
    # Quotes are words like others, and join no lines.
    path.write_bytes(b'"\tQ\na\tB\n"\tQ\n\n"c"\tD\n')
    assert read_tagged(str(path)).words == [['"', "a", '"'], ['"c"']]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tB\nc D\n", ", line 2: 0 tabs, where one parts a word and its label"),
        ("a\tB\n\nc\tD\tE\n", ", line 3: 2 tabs, where one parts a word and its label"),
        ("a\tB\nc\t \n", ", line 2: the label is empty"),
        ("a\tB\n\tD\n", ", line 2: the word is empty"),
        ("a\tB\n\t\n", ", line 2: the word is empty"),
        (
            "a\tB\n10 000\tD\n",
            ", line 2: the word '10 000' holds a space: part it by _",
        ),
        (b"a\tB\n\nc\xff\tD\n", r", line 3: not UTF-8 \(byte 6\); convert it, for"),
        ("", " holds no words: give a word, a tab and a label a line"),
        ("\n \n", " holds no words: give a word, a tab and a label a line"),
        ("a\tB\nc\tD\n", " is one sequence, of which no part can be held out: put"),
        ("a\tB\n\nc\tB\n", ": all labels are 'B'; give at least two"),
    ],
)
def test_files_that_are_no_use(
    config: Config, content: str | bytes, message: str
) -> None:
    data = content.encode() if isinstance(content, str) else content
    Path(config.data.path).write_bytes(data)
    with pytest.raises(UserError, match=rf"train\.conll{message}") as error:
        tag(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "data.path",
            "no.conll",
            "cannot read 'no.conll' .No such file or directory.:",
        ),
        ("data.path", "synthetic:waves", "'synthetic:waves' is unknown: choose synth"),
        ("data.padding", "front", "data.padding='front' is nothing for tags: set data"),
        ("data.padding", "left", "unknown data.padding 'left': choose front or right"),
        ("data.length", 0, "data.length=0 must be at least 1"),
        ("data.buckets", 6, "data.buckets=6 must be from 1 to 5"),
        ("data.vocab_size", 3, "vocab_size=3: give at least 4"),
        ("model.dropout", 1.0, r"model.dropout=1.0 must be in \[0, 1\)"),
    ],
)
def test_values_that_are_no_use(
    config: Config, field: str, value: Any, message: str
) -> None:
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        tag(config)


def test_labels_that_are_not_trained_on(config: Config, tmp_path: Path) -> None:
    test = Tagged([["a", "b"]], [["first", "last"]])
    config.data.test_path = write(tmp_path / "test.conll", test)
    with pytest.raises(UserError, match=r"test.conll: the label 'last' does not occ"):
        tag(config)
