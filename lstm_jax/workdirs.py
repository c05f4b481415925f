"""The folder of a run: whose it is, and what it answers."""

import contextlib
import hashlib
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from filelock import Timeout

from lstm_jax import checkpoints, identity, processes
from lstm_jax.cells import Params
from lstm_jax.config import Config, base_config, flatten
from lstm_jax.data.files import local_path
from lstm_jax.errors import UserError
from lstm_jax.identity import Identity
from lstm_jax.locks import locked
from lstm_jax.members import is_sweep
from lstm_jax.reporting import write_file
from lstm_jax.tasks.task import VOCABULARY_FILE

CONFIG_FILE = "config.json"
SUMMARY_FILE = "summary.txt"
LOCK_FILE = ".lock"
MEMBERS_FOLDER = "members"  # of a sweep: a run's folder each
# What may differ when a run goes on: it changes no update. The data may have moved: a
# hash among the task's files tells whether it is the same.
FREE = (
    "report.",
    "checkpoint.",
    "devices.",
    "data.tfds_dir",
    "data.path",
    "data.test_path",
)
# What a run writes, beside the files of its task.
_WRITTEN = (
    *(CONFIG_FILE, identity.IDENTITY_FILE, SUMMARY_FILE, "metrics.jsonl"),
    *("checkpoints", MEMBERS_FOLDER, "not_finite.json"),
    *("curves.png", "flow.png", "confusion.png", "forecast.png"),
)
_EVENTS = "events.out.tfevents.*"  # TensorBoard shows all of a folder as one run


@contextlib.contextmanager
def new_folder(task: str) -> Iterator[Path]:
    """Make the folder of a new run, `checkpoints/<task>-<number>`.

    It is gone again where the run ends before anything is in it.

    Args:
      task: name of the task.

    Raises:
      UserError: it cannot be written.
    """
    parent = Path("checkpoints")
    try:
        parent.mkdir(exist_ok=True)
        names = [
            re.fullmatch(rf"{re.escape(task)}-(\d+)", p.name) for p in parent.iterdir()
        ]
        number = max((int(name[1]) for name in names if name), default=0) + 1
        while True:
            workdir = parent / f"{task}-{number}"
            try:
                workdir.mkdir()
                break
            except FileExistsError:  # another process was quicker
                number += 1
    except OSError as error:
        raise UserError(
            f"cannot write to {parent} ({error.strerror}): name a folder in workdir"
        ) from None
    try:
        yield workdir
    finally:
        with contextlib.suppress(OSError):
            workdir.rmdir()


@contextlib.contextmanager
def claimed(
    workdir: Path,
    config: Config,
    files: Mapping[str, str],
    computed: Identity | None = None,
) -> Iterator[None]:
    """Makes the folder this run's, or finds that it is and leaves it as it was.

    Until the end no other process can have it; the lock dies with its owner. A disk
    without locks cannot keep others out: a line on stderr says so.

    Args:
      workdir: the folder; made if missing.
      config: of the run.
      files: contents by name; those of a run that goes on must be the same.
      computed: what the run computes, and of which data; a run that goes on must have
        the same, where the same versions found it. None: it is not compared.

    Raises:
      UserError: the folder holds something else, or another process trains there;
        nothing in it has changed then.
    """
    checkpoints.check_folder(workdir)
    _check_folder(workdir, config, files, computed)
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            missing = stack.enter_context(locked(workdir / LOCK_FILE, timeout=0.0))
            # Once more: another process may have begun and ended meanwhile.
            if not _check_folder(workdir, config, files, computed):
                # From here on the folder is this run's.
                store(workdir, config, {}, computed)
            elif computed is not None:
                _say_if_not_compared(workdir, computed)
        except Timeout:
            raise UserError(
                f"another process trains in {workdir}: wait for it, or "
                f"{_other(workdir)}"
            ) from None
        except OSError as error:
            raise UserError(
                f"cannot write to {workdir} ({error.strerror}): {_other(workdir)}"
            ) from None
        if missing is not None:
            print(
                f"{workdir} is on a disk without locks ({missing}): nothing keeps "
                "another process from training there; start no other in it",
                file=sys.stderr,
            )
        yield


@contextlib.contextmanager
def unwritable(workdir: Path) -> Iterator[None]:
    """Of a full disk or a folder without a right to write: one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {workdir} ({error.strerror}): its checkpoints are as "
            "they were; mend that, and the same command goes on"
        ) from None


def digest(config: Config, files: Mapping[str, str], computed: Identity) -> str:
    """A hash of what makes a run, to tell whether another process has the same."""
    fields = {
        name: value
        for name, value in flatten(config.to_dict()).items()
        if not name.startswith(FREE)
    }
    made = fields, sorted(files.items()), computed, checkpoints.version()
    content = json.dumps(made, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _check_folder(
    workdir: Path,
    config: Config,
    files: Mapping[str, str],
    computed: Identity | None,
) -> bool:
    """Refuses what holds something else; tells whether the folder has this run."""
    other = _other(workdir)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file: {other}")
    if (workdir / CONFIG_FILE).exists():
        differing = _differences(read_config(workdir), config)
        if differing:
            raise UserError(
                f"{workdir} holds a run of another config, which differs in "
                f"{'; '.join(differing)}: {other}"
            )
        differing = [
            name
            for name, content in files.items()
            if (workdir / name).exists()
            and (workdir / name).read_bytes() != content.encode()
        ]
        if VOCABULARY_FILE in differing and _spelling_differs(
            workdir / VOCABULARY_FILE, files[VOCABULARY_FILE]
        ):
            raise UserError(
                f"{workdir} holds a run that reads text by an earlier normalizer: "
                f"make_task takes that folder as well, to go on with it; or {other}"
            )
        if differing:
            raise UserError(
                f"{workdir} holds a run on other data ({differing[0]} differs): {other}"
            )
        stored = None if computed is None else identity.read(workdir)
        if stored and computed and (held := identity.difference(stored, computed)):
            raise UserError(f"{workdir} holds {held}: {other}")
        return True
    # Other files may be there, as a log that this run's output goes to; but none whose
    # name a run uses, and no runs below. A kill while the first file was written leaves
    # no more than that file's start.
    found = [name for name in (*_WRITTEN, *files) if (workdir / name).exists()]
    found += [path.name for path in workdir.glob(_EVENTS)]
    if found:
        raise UserError(
            f"{workdir} holds {found[0]} of something else, for there is no "
            f"{CONFIG_FILE}: {other}"
        )
    for path in workdir.glob(f"*/{CONFIG_FILE}"):
        # Other programs write a file of that name, too.
        if (path.parent / "checkpoints").is_dir():
            runs = f"holds runs, such as {path.parent.name}"
            raise UserError(f"{workdir} {runs}: {other}")
    return False


def _say_if_not_compared(workdir: Path, computed: Identity) -> None:
    """Says so of a run that goes on and is maybe not of this model, loss and data."""
    if not any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*")):
        return
    stored = identity.read(workdir)
    if stored is None:
        why = "the run was stored by a version that did not note them"
    elif stored.versions != computed.versions:
        names = [n for n, v in computed.versions.items() if stored.versions.get(n) != v]
        shown = ", ".join("lstm_jax" if n == "source" else n for n in names)
        why = f"the run was stored by another version of {shown or 'lstm_jax'}"
    else:
        return
    print(
        f"model, loss and data were not compared with those in {workdir}: {why}",
        file=sys.stderr,
    )


def _spelling_differs(path: Path, vocabulary: str) -> bool:
    try:
        stored = json.loads(path.read_bytes())["normalizer"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False  # damaged
    return stored != json.loads(vocabulary)["normalizer"]


def _other(workdir: Path) -> str:
    if workdir.name in ("", ".."):  # beside ".", not in it
        workdir = workdir.resolve()
    return f"name another folder with --workdir={workdir}_2"


def store(
    workdir: Path,
    config: Config,
    files: Mapping[str, str],
    computed: Identity | None = None,
) -> None:
    """Writes the config and the files of a run that begins or goes on.

    What the run computes is written where it is given: of one that goes on under
    another version what that found, so that the next time can be compared with it.
    """
    contents = {**files, CONFIG_FILE: _text(config)}
    # After the config: a kill in between leaves a folder that is known as a run's.
    if computed is not None:
        contents[identity.IDENTITY_FILE] = identity.to_text(computed)
    for name, content in contents.items():
        write_file(workdir / name, content)


def store_ended(workdir: Path, config: Config, files: Mapping[str, str]) -> None:
    """Writes what is free to change of a run that is not trained on.

    How long it was to be trained stays: a larger number is one that it never had.
    """
    config, before = config.copy_and_resolve_references(), read_config(workdir)
    for name in ("num_steps", "num_epochs", "patience"):
        config[name] = before[name]
    store(workdir, config, files)


def read_config(workdir: str | Path) -> Config:
    """The config of a run.

    Raises:
      UserError: the folder holds no run.
    """
    workdir = local_path(workdir)
    path = workdir / CONFIG_FILE
    mend = "restore it, or train in another folder"
    try:
        fields = json.loads(path.read_text())
    except OSError:
        raise UserError(
            f"no run in {workdir} (no {CONFIG_FILE}): train it first, by train.py with "
            f"--workdir={workdir} and the --config that it is to have"
        ) from None
    except (ValueError, RecursionError):  # beyond Python's own limits as well
        raise UserError(f"{path} is damaged: {mend}") from None
    if not isinstance(fields, dict):
        raise UserError(f"{path} holds no config: {mend}")
    config = base_config()
    defaults = flatten(config.to_dict())
    for name, value in flatten(fields).items():
        if name not in defaults:
            raise UserError(
                f"{path} has a field {name}, which this lstm_jax does not know: {mend}"
            )
        default = defaults[name]
        types = {float: (int, float), tuple: (list,)}.get(type(default), type(default))
        if not isinstance(value, types) or isinstance(value, bool) != isinstance(
            default, bool
        ):
            raise UserError(f"{path}: {name}={value!r} is not of its type: {mend}")
        try:
            config.update_from_flattened_dict(
                {name: tuple(value) if isinstance(default, tuple) else value}
            )
        except OverflowError:  # an integer larger than any float
            raise UserError(f"{path}: {name}={value} is too large: {mend}") from None
    return config


def stored_count(workdir: str | Path) -> int:
    """The number of devices that a run was on, with which it goes on to the bit.

    0 where there is no run yet; 1 of a run that stored none.
    """
    if not (Path(workdir) / CONFIG_FILE).exists():
        return 0
    return read_config(workdir).devices.count or 1


def answering_step(workdir: str | Path, best: str | None) -> int:
    """The step of the checkpoint that predicts: the best if tracked, else the last.

    Raises:
      UserError: there is none, or a sweep's.
    """
    workdir = local_path(workdir)
    _refuse_sweep(workdir)
    with checkpoints.open_checkpoints(workdir) as opened:
        step = checkpoints.best_step(opened, best) if best else None
        step = checkpoints.latest_step(opened) if step is None else step
    if step is None:
        raise UserError(
            f"no checkpoint in {workdir} yet: give train.py the command that began it "
            "once more"
        )
    return step


def load_params(workdir: str | Path, step: int) -> Params:
    """The parameters of a checkpoint, on the device.

    Raises:
      UserError: it is a sweep's.
    """
    workdir = local_path(workdir)
    _refuse_sweep(workdir)
    with checkpoints.open_checkpoints(workdir) as opened:
        return jax.device_put(checkpoints.restore_params(opened, step))


def _refuse_sweep(workdir: str | Path) -> None:
    """Raises a `UserError` where the parameters are those of many runs."""
    if not (Path(workdir) / CONFIG_FILE).exists():
        return
    if not is_sweep(read_config(workdir)):
        return
    folders = sorted(Path(workdir, MEMBERS_FOLDER).glob("seed*"))
    made = [str(path) for path in folders if path.suffix != ".tmp"]  # not half of one
    if made:
        mend = f"name the folder of a member, such as {made[0]}"
    else:
        mend = "its members can be read at its end: the same command goes on with it"
    raise UserError(f"{workdir} holds a sweep: {mend}")


def result(workdir: str | Path, best: str | None) -> dict[str, Any]:
    """What the checkpoint that predicts has reached; the last line of `train.py`."""
    step = answering_step(workdir, best)
    with checkpoints.open_checkpoints(workdir) as opened:
        meta = checkpoints.read_meta(opened, step)
        best_step = checkpoints.best_step(opened, best) if best else None
    return {
        "step": step,
        "epoch": meta["epoch"],
        **meta["metrics"],
        "best_step": best_step,
        "seconds": meta["seconds"],
        "workdir": str(workdir),
    }


def load_source(init_from: str | Path, workdir: Path) -> Params | None:
    """The parameters that a new run in `workdir` starts from; None: it goes on.

    Raises:
      UserError: `init_from` holds no run.
    """
    # By number alone: a save that was interrupted leaves a folder 10.orbax-....
    if any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*")):
        if processes.leads():
            print(
                f"the run in {workdir} goes on with its own parameters: init_from is "
                "not read",
                file=sys.stderr,
            )
        return None
    config = read_config(init_from)
    step = answering_step(init_from, config.checkpoint.best or None)
    if processes.leads():
        print(f"starting from step {step} of {init_from}")
    return load_params(init_from, step)


def _differences(old: Config, new: Config) -> list[str]:
    """Fields that keep a run from going on, as `name: old there, new here`."""
    # As JSON has them: a tuple in a config is a list there.
    before, after = (flatten(json.loads(_text(config))) for config in (old, new))
    lengths = ("num_steps", "num_epochs")
    longer = [name for name in lengths if after[name] > before[name] > 0]
    unscheduled = after.get("optimizer.schedule") == "constant"
    # More patience, 0 being without end, ends what has the same steps later. Not in a
    # sweep, whose other members went on meanwhile.
    patience = after["patience"] or math.inf, before["patience"] or math.inf
    patient = patience[0] > patience[1] and not is_sweep(new)
    return [
        f"{name}: {before.get(name)!r} there, {after.get(name)!r} here"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
        and not name.startswith(FREE)
        and not (name in longer and unscheduled)
        and not (name == "patience" and patient)
    ]


def _text(config: Config) -> str:
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"
