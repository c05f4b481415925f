"""Tests of lstm_jax.data.sources."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
import tiny_datasets

from lstm_jax.data import sources
from lstm_jax.data.sources import open_source, read_examples, read_texts
from lstm_jax.errors import UserError

SHARD = "imdb_reviews-train.array_record-00000-of-00001"
ROOT = Path(__file__).parents[1]
ELSEWHERE = "set TFDS_DATA_DIR (or data.tfds_dir of the config) to"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A folder with both data sets, and what they hold."""
    folder = tmp_path_factory.mktemp("tfds")
    reviews = tiny_datasets.prepare_tiny_imdb(folder, train=2100)
    return folder, reviews, tiny_datasets.prepare_tiny_mnist(folder)


@pytest.fixture
def copy(tiny: tuple[Path, Any, Any], tmp_path: Path) -> Path:
    """The folder of the reviews, for a test to damage."""
    shutil.copytree(tiny[0] / "imdb_reviews", tmp_path / "imdb_reviews")
    return tmp_path / "imdb_reviews" / "plain_text" / "1.0.0"


def refuse(*_: Any, **__: Any) -> None:
    raise requests.ConnectionError("no route to host")


def error_of(name: str, split: str, folder: Path) -> str:
    with pytest.raises(UserError) as error:
        open_source(name, split, str(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("split", ["train", "test", "unsupervised"])
def test_reviews_are_read_in_their_order(
    tiny: tuple[Path, Any, Any], split: str
) -> None:
    folder, reviews, _ = tiny
    expected, numbers = reviews[split]
    texts, labels = tiny_datasets.imdb_texts(split, str(folder))
    assert texts == expected
    assert labels.dtype == np.int32
    assert labels.tolist() == numbers.tolist()
    assert set(numbers) == ({-1} if split == "unsupervised" else {0, 1})


def test_source_tells_version_folder_and_size(tiny: tuple[Path, Any, Any]) -> None:
    folder, reviews, digits = tiny
    source = open_source("imdb_reviews", "test", str(folder))
    assert source.version == "1.0.0"
    assert source.folder == folder / "imdb_reviews" / "plain_text" / "1.0.0"
    assert source.size == len(source.examples) == 32
    texts, labels = reviews["test"]
    assert source.examples[7] == {"text": texts[7].encode(), "label": labels[7]}
    three = read_examples(source, [30, 2, 2])
    assert [example["text"].decode() for example in three] == [
        texts[i] for i in (30, 2, 2)
    ]

    source = open_source("mnist", "train", str(folder))
    assert source.version == "3.0.1"
    assert source.folder == folder / "mnist" / "3.0.1"
    assert source.size == 100
    images, labels = digits["train"]
    for i in (0, 63, 99):
        assert source.examples[i]["image"] == tiny_datasets.png(images[i])
        assert source.examples[i]["label"] == labels[i]


def test_slice_of_a_split(tiny: tuple[Path, Any, Any]) -> None:
    folder, reviews, _ = tiny
    source = open_source("imdb_reviews", "train[1005:2017]", str(folder))
    assert source.size == 1012
    assert read_texts(source)[0] == reviews["train"][0][1005:2017]


def test_folder_comes_from_the_flag_the_variable_or_home(
    tiny: tuple[Path, Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = tiny
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    assert open_source("mnist", "test").folder == folder / "mnist/3.0.1"
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert open_source("mnist", "test", str(folder)).size == 50
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=f"^mnist is not prepared in {tmp_path}, and"):
        open_source("mnist", "test")

    for variable in ("", None):
        if variable is None:
            monkeypatch.delenv("TFDS_DATA_DIR")
        else:
            monkeypatch.setenv("TFDS_DATA_DIR", variable)
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(UserError, match=f"in {tmp_path}/tensorflow_datasets, and"):
            open_source("mnist", "test")
    (tmp_path / "tensorflow_datasets").symlink_to(folder)
    assert open_source("mnist", "test").size == 50
    assert open_source("mnist", "test", "~/tensorflow_datasets").size == 50


def test_unknown_names_are_refused(tiny: tuple[Path, Any, Any]) -> None:
    folder, _, _ = tiny
    for split in ("validation", "train[:5", "train[3:3]"):
        assert error_of("mnist", split, folder) == (
            f"mnist has no split {split}: it has train, test"
        )
    assert error_of("mmnist", "train", folder) == "TFDS has no data set mmnist"


def test_another_file_format_is_named(copy: Path) -> None:
    info = copy / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    for shard in copy.glob("*array_record*"):
        shard.rename(str(shard).replace("array_record", "tfrecord"))
    assert error_of("imdb_reviews", "train", copy.parents[2]) == (
        f"{copy} holds tfrecord, and only array_record is read without TensorFlow: "
        f"{ELSEWHERE} another folder to prepare it in"
    )


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def cut(size: int) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        shard = (folder / SHARD).read_bytes()
        (folder / SHARD).write_bytes(shard[:size])

    return damage


def more_than_there_are(folder: Path) -> None:
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["2101"]
    (folder / "dataset_info.json").write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove(SHARD), f"({SHARD}: open() failed: No such file or directory"),
        (cut(0), f"({SHARD}: ArrayRecord file should be at least 64KB big"),
        (cut(65536), f"({SHARD}: cut short)"),
        (cut(70000), f"({SHARD}: Corrupted Riegeli/records file"),
        (cut(-1000), f"({SHARD}: Corrupted Riegeli/records file"),
        (remove("dataset_info.json"), "no description of its splits"),
        (lambda f: [path.unlink() for path in f.iterdir()], "no description of its"),
        (lambda f: (f / "dataset_info.json").write_text("{"), "Failed to"),
        (
            more_than_there_are,
            f"({SHARD}: 2100 records, where dataset_info.json says 2101",
        ),
    ],
)
def test_half_prepared_folder(
    copy: Path, damage: Callable[[Path], object], reason: str
) -> None:
    damage(copy)
    message = error_of("imdb_reviews", "train", copy.parents[2])
    assert message.startswith(str(copy.parents[1]))
    assert "is damaged or half prepared (" in message
    assert reason in message
    assert message.endswith(
        f"): delete it, and TFDS will prepare it anew, or {ELSEWHERE} another folder"
    )


def test_a_file_of_several_that_is_cut_short(copy: Path) -> None:
    """Reading the last example would not tell."""
    info = json.loads((copy / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["2100", "2100"]
    (copy / "dataset_info.json").write_text(json.dumps(info))
    first, last = (
        copy / f"imdb_reviews-train.array_record-0000{i}-of-00002" for i in range(2)
    )
    (copy / SHARD).rename(first)
    shutil.copy(first, last)
    source = open_source("imdb_reviews", "train", str(copy.parents[2]))
    assert source.size == 4200
    first.write_bytes(first.read_bytes()[:-65536])
    message = error_of("imdb_reviews", "train[100:]", copy.parents[2])
    assert message.startswith(f"{copy} is damaged or half prepared ({first.name}: ")
    # The rest is whole.
    whole = open_source("imdb_reviews", "train[2100:]", str(copy.parents[2]))
    assert len(read_texts(whole)[0]) == 2100


def test_damage_that_only_reading_finds(copy: Path) -> None:
    shard = bytearray((copy / SHARD).read_bytes())
    for position in range(300, 40000, 500):
        shard[position] ^= 255
    (copy / SHARD).write_bytes(shard)
    source = open_source("imdb_reviews", "train", str(copy.parents[2]))
    with pytest.raises(UserError, match=f" damaged or half .* \\({SHARD}: Corrupted"):
        read_texts(source)


def test_without_array_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on Windows; TFDS would print a banner to stdout and raise an ImportError."""
    for module in [*sys.modules]:
        if module.partition(".")[0] == "array_record":
            monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "array_record", None)
    for name in ("imdb_reviews", "mnist"):
        assert error_of(name, "train", tmp_path) == (
            f"{name} is read with the package array_record, which cannot be imported "
            "(import of array_record.python halted; None in sys.modules): pip install "
            "array_record; there is none for Windows and for Intel Macs, so use Linux "
            "there (WSL, a container)"
        )
    assert capsys.readouterr() == ("", "")
    assert not any(tmp_path.iterdir())


def test_what_not_every_platform_has_is_imported_where_it_is_needed() -> None:
    early = re.compile(r"^(import|from) (array_record|tensorflow)", re.MULTILINE)
    for path in [*ROOT.glob("*.py"), *ROOT.glob("lstm_jax/**/*.py")]:
        if "certify" not in path.parts:
            assert not early.search(path.read_text(encoding="utf-8")), path


@pytest.mark.slow
def test_all_but_data_sets_of_tfds_works_without_array_record(tmp_path: Path) -> None:
    own = "".join(f"a good day,up\na bad day {i},down\n" for i in range(20))
    (tmp_path / "own.csv").write_text("text,label\n" + own)
    small = "--config.num_steps=2 --config.model.hidden_size=4"
    texts = f"{small} --config.task=classify_text --config.data.path={{}}"
    for number, (path, code) in enumerate(
        (("", 0), (f"{tmp_path}/own.csv", 0), ("tfds:imdb_reviews", 2))
    ):
        argv = [f"--workdir={tmp_path / str(number)}"]
        argv += (texts.format(path) if path else small).split()
        program = (
            "import runpy, sys; sys.modules['array_record'] = None; "
            f"sys.argv = ['train.py', *{argv!r}]; "
            "runpy.run_path('train.py', run_name='__main__')"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert ("read with the package array_record" in done.stderr) == (code == 2)
        assert (tmp_path / str(number)).exists() == (code == 0)


def test_tensorflow_is_asked_for_before_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(requests, "head", refuse)
    assert error_of("mnist", "train", tmp_path) == (
        f"mnist is not prepared in {tmp_path}, and TFDS prepares it with TensorFlow: "
        f"run pip install -e '.[prepare]' in the checkout, or {ELSEWHERE} a folder "
        "that holds it"
    )
    assert not any(tmp_path.iterdir())
    # With it, the next thing that is missing is the network.
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert "(no answer from https://stor" in error_of("mnist", "train", tmp_path)


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def head(url: str, timeout: float) -> None:
        asked.append((url, timeout))
        refuse()

    monkeypatch.setattr(requests, "head", head)
    url = "http://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
    assert error_of("imdb_reviews", "train", tmp_path) == (
        f"imdb_reviews is not prepared in {tmp_path} and cannot be now (no answer from "
        f"{url}): {ELSEWHERE} a folder that holds it, or run this once with a network"
    )
    assert asked == [(url, 10)]
    assert not any(tmp_path.iterdir())


def test_what_was_downloaded_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device\nand more")

    monkeypatch.setattr(requests, "head", refuse)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    (tmp_path / "downloads" / "imdb_reviews").mkdir(parents=True)
    assert "(no answer from http" in error_of("imdb_reviews", "train", tmp_path)
    (tmp_path / "downloads" / "imdb_reviews" / "reviews.tar.gz.INFO").touch()
    assert error_of("imdb_reviews", "train", tmp_path).startswith(
        f"imdb_reviews is not prepared in {tmp_path} and cannot be now (No space left "
        "on device): set"
    )


def test_folder_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "head", lambda *_, **__: None)
    (tmp_path / "file").touch()
    message = error_of("imdb_reviews", "train", tmp_path / "file")
    assert message.startswith(f"imdb_reviews is not prepared in {tmp_path}/file and")


def test_tfds_prepares_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["one", "two", "three"]
    labels = np.array([1, 0, 1])

    def builder(name: str, folder: str) -> tfds.core.DatasetBuilder:
        assert name == "imdb_reviews"
        splits = {"train": (texts, labels)}
        return tiny_datasets.ImdbReviews(splits=splits, data_dir=folder)

    monkeypatch.setattr(sources, "_builder", builder)
    source = open_source("imdb_reviews", "train", str(tmp_path))
    assert source.size == 3
    assert read_texts(source)[0] == texts
    assert [path.name for path in source.folder.glob("*train*")] == [SHARD]
    out, err = capsys.readouterr()
    assert out == ""
    assert "Downloading and preparing dataset" in err
    monkeypatch.undo()  # TFDS's own builder finds it now
    assert tiny_datasets.imdb_texts("train", str(tmp_path))[0] == texts
    assert capsys.readouterr() == ("", "")


def test_real_reviews() -> None:
    folder = tiny_datasets.real_dataset("imdb_reviews")
    sizes = {"train": 25000, "test": 25000, "unsupervised": 50000}
    for split, size in sizes.items():
        assert open_source("imdb_reviews", split, folder).size == size
    texts, labels = tiny_datasets.imdb_texts("train[:2000]", folder)
    assert texts[0].startswith("This was an absolutely terrible movie. Don't be lured")
    assert labels[0] == 0
    assert 900 < labels.sum() < 1100
    assert sum("<br />" in text for text in texts) > 500
    good = np.array(["wonderful" in text for text in texts])
    assert labels[good].mean() > 0.7
    assert (tiny_datasets.imdb_texts("unsupervised[:100]", folder)[1] == -1).all()
