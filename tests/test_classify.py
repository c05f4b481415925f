"""The tasks classify_text and classify_images, from the data to the answers."""

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_runs import Finished, assert_user_error
from tiny_datasets import (
    imdb_texts,
    png,
    prepare_tiny_imdb,
    prepare_tiny_mnist,
    real_dataset,
)
from tokenizers import Tokenizer
from toy_runs import toy_config

from lstm_jax import classifying, prediction, steps, training
from lstm_jax.config import base_config
from lstm_jax.data.reviews import decode, train_vocabulary
from lstm_jax.errors import UserError
from lstm_jax.tasks import make_task
from lstm_jax.tasks.classify_images import shift_images

pytestmark = pytest.mark.usefixtures("fast_runs")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def text_config(**fields: object) -> object:
    config = toy_config(num_steps=80)
    config.task = "classify_text"
    config.model.hidden_size = 8
    config.model.embedding_size = 8
    config.optimizer.learning_rate = 0.05
    config.batch_size = 16
    config.data.path = "tfds:imdb_reviews"
    config.data.length = 30
    config.model.head = "sigmoid"
    config.model.pooling = "max"
    config.report.every = 100
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture
def imdb(tmp_path: Path) -> dict[str, object]:
    prepare_tiny_imdb(tmp_path / "tfds")
    return {"data.tfds_dir": str(tmp_path / "tfds")}


@pytest.mark.parametrize(
    "padding", [pytest.param("front", marks=pytest.mark.slow), "right"]
)
def test_reviews_are_learnt_and_answered(
    padding: str, imdb: dict[str, object], tmp_path: Path
) -> None:
    buckets = 2 if padding == "right" else 1
    fields = imdb | {"data.padding": padding, "data.buckets": buckets}
    config = text_config(**fields)
    task = make_task(config)
    assert len(task.examples) == buckets
    result = training.fit(config, task, tmp_path / "run")
    assert result["test_accuracy"] > 0.9
    run = prediction.load(tmp_path / "run")
    texts = ["a superb movie , liked it", "a", "awful waste and boring"]
    answers = list(classifying.classify_texts(run, texts))
    assert [answers[i].label for i in (0, 2)] == ["positive", "negative"]
    for unknown in ("", "Это ужасно"):
        with pytest.raises(UserError, match=f"'{unknown}' holds no word that the mode"):
            list(classifying.classify_texts(run, [texts[0], unknown]))
        with pytest.raises(UserError, match=f"^'{unknown}' holds no word that the mod"):
            classifying.check_words(run, unknown)
    classifying.check_words(run, texts[1])
    # One by one the answers are the same: the padding of a batch is not in them.
    for text, answer in zip(texts, answers, strict=True):
        alone = next(classifying.classify_texts(run, [text]))
        assert alone.label == answer.label
        assert alone.probability == pytest.approx(answer.probability, rel=1e-5)
    words, pads = ["<START>", "a", "superb", "movie", "liked", "it"], ["<PAD>"] * 24
    seen = pads + words if padding == "front" else words + pads
    assert answers[0].seen.split() == seen


def test_a_validation_part_is_held_out_of_training(imdb: dict[str, object]) -> None:
    task = make_task(text_config(**imdb, **{"data.holdout": 0.25}))
    assert list(task.splits) == ["validation", "test"]
    train, held_out = task.examples[0], task.splits["validation"][0]
    assert len(train["labels"]) == 48
    assert sorted(held_out["labels"].tolist()) == [0] * 8 + [1] * 8
    # Each text is in one of the parts, and the words are those of the first.
    vocabulary = Tokenizer.from_str(task.files["vocabulary.json"])
    texts, _ = imdb_texts("train", str(imdb["data.tfds_dir"]))
    known = set(vocabulary.get_vocab())
    spelt = []
    for text in texts:
        words = ["<START>", *re.findall("[a-z0-9']+", text.lower())][-30:]
        spelt.append(" ".join(w if w in known else "<UNK>" for w in words))
    shown = [
        [decode(vocabulary, row[row > 0]) for row in part["inputs"]]
        for part in (train, held_out)
    ]
    assert sorted(shown[0] + shown[1]) == sorted(spelt)
    trained = [text for text, cut in zip(texts, spelt, strict=True) if cut in shown[0]]
    assert vocabulary.to_str() == train_vocabulary(trained).to_str()


def test_labels_of_one_kind(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("text,label\na,1\nb, 1\n")
    config = text_config(**{"data.path": str(tmp_path / "own.csv")})
    with pytest.raises(UserError, match="all labels are '1' in column 'label'; a cla"):
        make_task(config)
    # A test file may have labels of one kind.
    (tmp_path / "own.csv").write_text("text,label\nschön,1\n日本,2\ndon\u2019t,1\n")
    (tmp_path / "test.csv").write_text("text,label\nschön,1\n")
    config.data.test_path = str(tmp_path / "test.csv")
    config.model.head = "softmax"
    task = make_task(config)
    assert task.splits["test"][0]["labels"].tolist() == [0]
    words = json.loads(task.files["vocabulary.json"])["model"]["vocab"]
    assert {"schön", "日本", "don't"} < set(words)


def test_lines_end_where_lines_do(tmp_path: Path) -> None:
    (tmp_path / "texts").write_bytes("a fine\u2028film\r\none\x85two\x0c\n\nb".encode())
    lines = classifying.read_lines(str(tmp_path / "texts"))
    assert lines == {1: "a fine\u2028film", 2: "one\x85two\x0c", 4: "b"}


@pytest.mark.parametrize(
    ("task", "field", "value"),
    [
        ("classify_text", "level", "char"),
        ("classify_images", "length", 5),
        ("language_model", "holdout", 0.5),
        ("next_word", "shift", 1),
        ("tag", "text_column", "x"),
        ("regress", "buckets", 2),
    ],
)
def test_fields_that_a_task_does_not_read(task: str, field: str, value: object) -> None:
    config = toy_config(**{f"data.{field}": value})
    config.task = task
    with pytest.raises(
        UserError, match=f"data.{field}={value!r} is nothing for the ta"
    ):
        make_task(config)


def test_the_vocabulary_is_of_the_training_split(
    imdb: dict[str, object], tmp_path: Path
) -> None:
    task = make_task(text_config(**imdb, **{"data.vocab_size": 8}))
    vocabulary = json.loads(task.files["vocabulary.json"])["model"]["vocab"]
    texts = prepare_tiny_imdb(tmp_path / "again")["train"][0]
    words = [w for text in texts for w in re.findall("[a-z0-9']+", text.lower())]
    counts = sorted(set(words), key=lambda word: (-words.count(word), word))
    assert list(vocabulary) == ["<PAD>", "<START>", "<UNK>", *counts[:5]]
    assert max(task.examples[0]["inputs"].max(), 0) < 8


def test_own_files(tmp_path: Path, call: Callable[..., Finished]) -> None:
    rows = [
        (f"{word} {i}", label)
        for i, (word, label) in enumerate(
            itertools.islice(
                itertools.cycle(
                    [("apple pear", "fruit"), ("oak", "tree"), ("dog", "animal")]
                ),
                60,
            )
        )
    ]
    path = tmp_path / "own.csv"
    path.write_text("what,kind\n" + "\n".join(f"{a},{b}" for a, b in rows))
    fields = {
        "data.path": str(path),
        "data.text_column": "what",
        "data.label_column": "kind",
        "model.head": "softmax",
        "data.length": 5,
    }
    config = text_config(**fields)
    task = make_task(config)
    assert json.loads(task.files["labels.json"]) == ["animal", "fruit", "tree"]
    assert steps.size_of(task.examples[0]) == 48
    assert steps.size_of(task.splits["test"][0]) == 12
    training.fit(config, task, tmp_path / "run")
    run = prediction.load(tmp_path / "run")
    answers = list(classifying.classify_texts(run, ["oak", "an apple pear", "Dog!"]))
    assert [a.label for a in answers] == ["tree", "fruit", "animal"]
    assert (tmp_path / "run" / "confusion.png").read_bytes()[1:4] == b"PNG"

    # A line without an answer is marked, and the others have theirs.
    predict = ("predict.py", f"--workdir={tmp_path / 'run'}")
    reason = "'…' holds no word that the model knows\n"
    (tmp_path / "lines").write_text("oak\n…\nDog!\n")
    done = call(*predict, f"--input_file={tmp_path / 'lines'}")
    shown = [f"{a.label} {a.probability:.3f}  " for a in answers]
    assert done.out == f"{shown[0]}oak\n? nan    …\n{shown[2]}Dog!\n"
    assert (done.code, done.err) == (0, f"line 2: {reason}")
    done = call(*predict, f"--input_file={tmp_path / 'lines'}", "--show_ids")
    lines = done.out.splitlines()
    assert lines[0].split()[2:] == ["<PAD>"] * 3 + ["<START>", "oak"]
    assert lines[1] == "? nan    …"
    assert len(lines) == 3
    done = call(*predict, "--interactive", stdin="…\noak\n")
    assert done.out == f"text: {reason}text: {shown[0]}oak\ntext: \n"
    assert (done.code, done.err) == (0, "")
    (tmp_path / "lines").write_text("\n…\n?\n")
    done = call(*predict, f"--input_file={tmp_path / 'lines'}")
    assert_user_error(done, f"error: line 2: {reason}")
    assert_user_error(call(*predict, "--input=…"), f"error: {reason}")

    test = tmp_path / "test.jsonl"
    test.write_text('{"what": "oak", "kind": "tree"}\n{"what": "x", "kind": "fruit"}\n')
    config.data.test_path = str(test)
    task = make_task(config)
    assert steps.size_of(task.examples[0]) == 60
    assert task.splits["test"][0]["labels"].tolist() == [2, 1]
    test.write_text('{"what": "a", "kind": "rock"}\n{"what": "x", "kind": "fruit"}\n')
    with pytest.raises(UserError, match="the label 'rock' does not occur in"):
        make_task(config)
    config.model.head = "sigmoid"
    config.data.test_path = ""
    with pytest.raises(UserError, match="tells two classes apart and the data has 3"):
        make_task(config)


def test_images_are_learnt_and_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = prepare_tiny_mnist(tmp_path / "tfds", train=200)["test"]
    config = toy_config(num_steps=300)
    config.task = "classify_images"
    config.batch_size = 25
    config.data.path = "tfds:mnist"
    config.data.tfds_dir = str(tmp_path / "tfds")
    config.model = base_config().model
    config.model.cell = "gru"
    config.model.hidden_size = 8
    config.optimizer.learning_rate = 0.05
    config.report.every = 100
    task = make_task(config)
    inputs = task.splits["test"][0]["inputs"]
    np.testing.assert_array_equal(inputs, (images / 255).astype(np.float32))
    assert task.splits["test"][0]["labels"].tolist() == labels.tolist()
    result = training.fit(config, task, tmp_path / "run")
    assert result["test_accuracy"] > 0.6  # of ten classes
    run = prediction.load(tmp_path / "run")
    hits = 0
    capsys.readouterr()
    for index in range(10):
        answer, truth = classifying.classify_test_image(run, index)
        assert truth == str(labels[index])
        (tmp_path / "digit.png").write_bytes(png(images[index]))
        own = classifying.classify_image(run, str(tmp_path / "digit.png"))
        assert own == answer
        hits += answer.label == truth
        # White ink on nothing is the same image; black ink on nothing gets a line.
        ink = np.full((28, 28), 255, np.uint8)
        for grey, err in ((ink, ""), (ink * 0, "invert the image if the answer is")):
            rgba = np.stack([grey, grey, grey, images[index]], axis=-1)
            (tmp_path / "digit.png").write_bytes(png(rgba))
            own = classifying.classify_image(run, str(tmp_path / "digit.png"))
            assert (own == answer) or err
            shown = capsys.readouterr().err
            assert err in shown
            assert bool(err) == bool(shown)
    assert hits >= 5
    (tmp_path / "digit.png").write_bytes(png(np.zeros((28, 28, 4), np.uint8)))
    with pytest.raises(
        UserError, match=r"digit\.png is empty: nothing is seen at 28x28"
    ):
        classifying.classify_image(run, str(tmp_path / "digit.png"))
    with pytest.raises(
        UserError, match="--index=50: the test split has images 0 to 49"
    ):
        classifying.classify_test_image(run, 50)


def test_shifted_images_hold_the_same_pixels() -> None:
    images = np.zeros((40, 28, 28), np.float32)
    images[:, 13, 14] = 1
    moved = np.asarray(shift_images(jax.random.key(0), jnp.asarray(images), 2))
    places = [tuple(np.argwhere(image)[0] - (13, 14)) for image in moved]
    assert (moved.sum((1, 2)) == 1).all()
    assert {abs(x) for place in places for x in place} == {0, 1, 2}
    assert len(set(places)) > 12


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.length": 0}, "data.length=0 must be at least 1"),
        ({"data.padding": "left"}, "unknown data.padding 'left'"),
        ({"data.buckets": 6}, "data.buckets=6 must be from 1 to 5"),
        ({"data.buckets": 2}, "data.buckets=2 batches by length: set data.padding"),
        ({"data.path": "tfds:glue"}, "data.path='tfds:glue' is unknown"),
        ({"data.path": "own.txt"}, "the ending '.txt' is unknown"),
        ({"data.vocab_size": 2}, "vocab_size=2"),
        ({"model.pooling": "sum"}, "unknown model.pooling 'sum'"),
        ({"model.dense": (8, 0)}, "model.dense"),
        ({"model.recurrent_dropout": 1.0}, "model.recurrent_dropout=1.0 must be in"),
        (
            {"model.recurrent_dropout": 0.1, "model.cell": "gru(reset_after=False)"},
            "cannot be had with",
        ),
    ],
)
def test_errors_name_the_field(
    fields: dict[str, object], message: str, imdb: dict[str, object]
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        make_task(text_config(**{**imdb, **fields}))


def test_a_slice_of_the_real_reviews(tmp_path: Path) -> None:
    from lstm_jax.data.reviews import Ragged, encode_texts, pad, train_vocabulary

    texts, labels = imdb_texts("train[:200]", real_dataset("imdb_reviews"))
    assert set(labels.tolist()) == {0, 1}
    vocabulary = train_vocabulary(texts)
    ragged = encode_texts(vocabulary, texts)
    assert isinstance(ragged, Ragged)
    ids, lengths = pad(ragged, 100, vocabulary.get_vocab_size())
    for text, row, length in zip(texts, ids, lengths, strict=True):
        text = re.sub("(?<=[a-zA-Z])`(?=[a-z])", "'", text)  # I`m is I'm
        words = ["<START>", *re.findall("[a-z0-9']+", text.lower())][-100:]
        assert decode(vocabulary, row[100 - length :]).split() == words
