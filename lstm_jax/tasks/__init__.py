"""What a batch means: its loss, its metrics, and what a person is shown of it."""

from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

from lstm_jax.cells import CellError
from lstm_jax.config import Config, check_config, refuse_unread
from lstm_jax.data.files import local_path
from lstm_jax.errors import UserError
from lstm_jax.tasks.classification import classification
from lstm_jax.tasks.classify_images import classify_images
from lstm_jax.tasks.classify_text import classify_text
from lstm_jax.tasks.language_model import language_model
from lstm_jax.tasks.naming import names_of
from lstm_jax.tasks.next_word import next_word
from lstm_jax.tasks.regress import regress
from lstm_jax.tasks.tag import tag
from lstm_jax.tasks.task import VOCABULARY_FILE, Task

__all__ = ["TASKS", "Task", "classification", "make_task"]

# Those of text read it as a stored vocabulary does, if there is one.
TASKS: dict[str, Callable[..., Task]] = {
    "next_word": next_word,
    "language_model": language_model,
    "classify_text": classify_text,
    "classify_images": classify_images,
    "tag": tag,
    "regress": regress,
}

# Fields of the group `data` that shape each task, beside where the data lies.
_TEXT = ("vocab_size", "length")
_LABELLED = ("test_path", "holdout", "padding", "buckets", *_TEXT)
_READ: dict[str, tuple[str, ...]] = {
    "next_word": ("window", "order"),
    "language_model": ("level", "limit", *_TEXT),
    "classify_text": ("text_column", "label_column", *_LABELLED),
    "classify_images": ("holdout", "shift"),
    "tag": _LABELLED,
    "regress": ("column", "window", "horizon", "holdout"),
}

_READS_TEXT = ("next_word", "language_model", "classify_text", "tag")


def make_task(config: Config, workdir: str | Path | None = None) -> Task:
    """The task that a config names.

    Args:
      config: of the run.
      workdir: folder of the run. One that is there goes on with the spelling of its
        own vocabulary, should newer ones have another.

    Raises:
      UserError: there is none of that name, or its data is no use.
    """
    check_config(config)
    if config.task not in TASKS:
        raise UserError(f"unknown task {config.task!r}: choose {', '.join(TASKS)}")
    # What is drawn by the seed on the host would be another one's for each member.
    seeded = config.data.holdout and config.task != "regress"
    if config.sweep.seeds > 1 and (seeded or config.data.order == "walk"):
        raise UserError(
            f"data.holdout={config.data.holdout} and data.order={config.data.order!r} "
            "depend on the seed, and a sweep's members share their data: set "
            "data.holdout=0 and data.order=shuffled, or sweep.seeds=1"
        )
    unread = set(config.data) - {"path", "tfds_dir", *_READ[config.task]}
    refuse_unread("data", config.data, sorted(unread), f"the task {config.task}")
    try:
        if config.task in _READS_TEXT:
            task = TASKS[config.task](config, _stored_vocabulary(workdir))
        else:
            task = TASKS[config.task](config)
    except CellError as error:
        raise UserError(f"model.cell={config.model.cell!r}: {error}") from None
    return task._replace(names=names_of(config) or {})


def _stored_vocabulary(workdir: str | Path | None) -> Tokenizer | None:
    if workdir is None:
        return None
    path = local_path(workdir) / VOCABULARY_FILE
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception:  # none there; or damaged, and training refuses that folder
        return None
