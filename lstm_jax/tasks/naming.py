"""Which parameters a run's files give names to: words and labels, not numbers.

The vocabulary of another run numbers the same words otherwise. Where a run starts from
another one's parameters, `lstm_jax.transfer` matches what is named here by its names.
"""

import json

from tokenizers import Tokenizer

from lstm_jax.config import Config
from lstm_jax.tasks.task import LABELS_FILE, VOCABULARY_FILE, Named, Names

# Of each task: whether it reads words, and which file numbers its outputs.
_TASKS: dict[str, tuple[bool, str | None]] = {
    "next_word": (True, VOCABULARY_FILE),
    "language_model": (True, VOCABULARY_FILE),
    "classify_text": (True, LABELS_FILE),
    "classify_images": (False, LABELS_FILE),
    "tag": (True, LABELS_FILE),
    "regress": (False, None),
}


def names_of(config: Config) -> Names | None:
    """Return what names the parameters of `lstm_jax.models` in a task of a config.

    None is returned for a task of one's own, which says so itself in `Task.names`.
    """
    if config.task not in _TASKS:
        return None
    reads_words, outputs = _TASKS[config.task]
    names: dict[str, Named] = {}
    if reads_words and config.model.embedding_size:
        names["embedding/embedding"] = Named(VOCABULARY_FILE, 0)
    elif reads_words:
        names["recurrent/layer_0"] = Named(VOCABULARY_FILE, None)
    if outputs is not None:
        names |= {"head/kernel": Named(outputs, 1), "head/bias": Named(outputs, 0)}
    return names


def named(names: Names, parameter: str) -> Named | None:
    """Return what names the entries of a parameter; None: nothing does."""
    for name, found in names.items():
        if parameter == name or parameter.startswith(f"{name}/"):
            return found
    return None


def entries(file: str, content: str) -> tuple[str, ...]:
    """Return the names in a file, in the order of their numbers.

    Raises:
      ValueError: it holds no such names.
    """
    if file == VOCABULARY_FILE:
        try:
            numbers = Tokenizer.from_str(content).get_vocab()
        except Exception as error:  # the library has no exception of its own
            raise ValueError(str(error)) from None
        found = sorted(numbers, key=numbers.__getitem__)
        if [numbers[name] for name in found] != [*range(len(found))]:
            raise ValueError("its words are not numbered from 0")
        return tuple(found)
    listed = json.loads(content)
    if not isinstance(listed, list) or not all(isinstance(x, str) for x in listed):
        raise ValueError("no list of names")
    if len(set(listed)) < len(listed):
        raise ValueError("a name twice")
    return tuple(listed)
