"""Paths as users write them: `~` where no shell expands it, buckets' addresses."""

import json
import os
import pwd
from collections.abc import Callable
from pathlib import Path

import pytest
from command_runs import (
    READS_CONFIG,
    ROOT,
    TINY,
    Finished,
    Trained,
    assert_user_error,
    contents,
)
from toy_runs import climbing_config, climbing_task, toy_config

from lstm_jax import prediction, serving, tasks, training, weights, workdirs
from lstm_jax.data import cache, files, images, sources, text
from lstm_jax.data.files import local_path
from lstm_jax.errors import UserError
from lstm_jax.lab import own_cell

ADDRESSES = [
    *("gs://bucket/run", "s3://bucket/run", "https://a.org/x.csv", "hdfs://a/b"),
    Path("gs://bucket/run"),
    Path("s3://bucket/run"),
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder that is not the working directory, which has a folder `~`."""
    folder, here = tmp_path / "home", tmp_path / "here"
    for path in (folder, here / "~"):
        path.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(here)
    return folder


def test_the_home_folder_is_meant(home: Path) -> None:
    assert local_path("~") == home
    assert local_path("~/run") == local_path(Path("~/run")) == home / "run"
    user = pwd.getpwuid(os.getuid())
    assert local_path(f"~{user.pw_name}/run") == Path(user.pw_dir, "run")


@pytest.mark.parametrize("path", ["run", "a/~/b", "a~", "gs:", "a:b/c", "/tmp/a", "."])
def test_other_paths_are_as_they_are(home: Path, path: str) -> None:
    assert local_path(path) == Path(path)


def test_no_home_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"^~nobody-here/x: no home folder ~nobody-here"
    ):
        local_path("~nobody-here/x")
    Path("~$table.csv").touch()  # as an office program leaves it
    assert local_path("~$table.csv") == Path("~$table.csv")
    # Without the variable the system's list of users tells.
    monkeypatch.delenv("HOME")
    assert local_path("~/run") == Path(pwd.getpwuid(os.getuid()).pw_dir, "run")

    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(UserError, match=r"^~/run: no home folder ~ is known"):
        local_path("~/run")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(UserError, match=r"^~/.cache: .* set HOME, or"):
        cache.default_folder()


@pytest.mark.parametrize("path", ADDRESSES)
def test_addresses_are_refused(path: str | Path) -> None:
    with pytest.raises(UserError, match=r"buckets are not supported yet: give a local"):
        local_path(path)


@pytest.mark.parametrize("path", ["a" * 300, Path("a" * 300, "x"), f"~/{'a' * 300}"])
def test_no_path_at_all(path: str | Path) -> None:
    with pytest.raises(UserError, match="is no path here") as error:
        local_path(path)
    assert len(str(error.value)) < 150


READERS: dict[str, Callable[[str], object]] = {
    "fit": lambda path: training.fit(
        climbing_config(num_steps=1), climbing_task(lambda w: w), path
    ),
    "init_from": lambda path: training.fit(
        climbing_config(num_steps=1), climbing_task(lambda w: w), "run", path
    ),
    "load": prediction.load,
    "config": workdirs.read_config,
    "params": lambda path: workdirs.load_params(path, 1),
    "answering_step": lambda path: workdirs.answering_step(path, None),
    "make_task": lambda path: tasks.make_task(toy_config(), path),
    "export": lambda path: serving.export_run(path, "out"),
    "weights": weights.load_weights,
    "text": text.read_text,
    "file": lambda path: files.read_utf8(path, ""),
    "image": images.read_png,
    "tfds": lambda path: sources.open_source("imdb_reviews", "train", path),
    "cell": own_cell.load,
}


def test_an_empty_workdir(home: Path) -> None:
    with pytest.raises(UserError, match="workdir is empty: name a folder"):
        READERS["fit"]("")
    assert [path.name for path in home.parent.glob("here/*")] == ["~"]


@pytest.mark.parametrize("reader", READERS)
def test_every_door(home: Path, reader: str) -> None:
    """Nothing is made of an address, and errors name the home folder's path."""
    before = contents(home.parent)
    with pytest.raises(
        UserError, match=r"^gs://bucket/x is no local path, and buckets"
    ):
        READERS[reader]("gs://bucket/x")
    assert contents(home.parent) == before


def test_a_run_in_the_home_folder(home: Path) -> None:
    config, task = climbing_config(num_steps=2), climbing_task(lambda w: w)
    result = training.fit(config, task, "~/run")
    assert result["workdir"] == str(home / "run")
    result = training.fit(config, task, "~/other", init_from=Path("~/run"))
    for path in ("~/other", home / "other"):
        assert workdirs.load_params(path, 2) == {"w": 4.0}
        assert workdirs.answering_step(path, None) == 2
        assert workdirs.read_config(path).num_steps == 2
    assert [*Path("~").iterdir()] == []


@READS_CONFIG
def test_at_the_command_line(
    home: Path, trained: Trained, call: Callable[..., Finished]
) -> None:
    (home / "run").symlink_to(trained.workdir)
    (home / "text.txt").write_bytes(
        Path(text.__file__).parent.joinpath("texts/fable.txt").read_bytes()
    )
    (home / "own.py").write_bytes((ROOT / "configs" / "fable.py").read_bytes())
    done = call(
        *("train.py", "--config=~/own.py", "--workdir=~/new", "--init_from=~/run"),
        *("--config.data.path=~/text.txt", *TINY),
    )
    assert done.code == 0, done.err
    assert json.loads(done.out.splitlines()[-1])["workdir"] == str(home / "new")
    assert f"starting from step 2 of {home / 'run'}" in done.out
    # As it was given: another user's home folder is another one.
    assert workdirs.read_config(home / "new").data.path == "~/text.txt"
    (home / "texts").write_text("long ago , the mice\n")
    done = call("predict.py", "--workdir=~/new", "--input_file=~/texts")
    assert (done.code, done.out[:20]) == (0, "long ago , the mice "), done.err
    assert [*Path("~").iterdir()] == []


@READS_CONFIG
@pytest.mark.parametrize(
    ("script", "flag"),
    [
        ("train.py", "workdir"),
        ("train.py", "init_from"),
        ("train.py", "config.data.path"),
        ("predict.py", "workdir"),
        ("flow.py", "workdir"),
        ("lab.py", "out"),
    ],
)
@pytest.mark.parametrize("path", ["gs://bucket/run", "a" * 300])
def test_addresses_at_the_command_line(
    home: Path, script: str, flag: str, path: str, call: Callable[..., Finished]
) -> None:
    (home / "cell.py").write_text("import lstm_jax as lj\n\ncell = lj.lstm\n")
    own = {"predict.py": ["--input=a"], "lab.py": [str(home / "cell.py")]}
    before = contents(home.parent)
    arguments = own.get(script, [])
    if script == "train.py" and flag != "workdir":
        arguments = ["--workdir=run", *TINY]
    done = call(script, f"--{flag}={path}", *arguments)
    assert_user_error(done, f"{path[:60]}", " is no ")
    assert contents(home.parent) == before
