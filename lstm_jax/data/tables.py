"""The user's own labelled texts: a CSV, TSV or JSONL file, and a part held out."""

import json
import re
import reprlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from lstm_jax.data import spelling
from lstm_jax.data.files import Record, holds_rows, read_records, read_utf8
from lstm_jax.errors import UserError


class Labelled(NamedTuple):
    """Texts, each with the name of its class."""

    texts: list[str]
    labels: list[str]


# (line on which it begins, text, label) of each row.
Rows = Iterator[tuple[int, str, str]]


def read_labelled(
    path: str, text_column: str = "text", label_column: str = "label"
) -> Labelled:
    """The two columns of a file, chosen by its ending.

    A `.csv` or `.tsv` file has a header row, and its quoted fields may hold newlines.
    In a `.tsv` file, a quote that is not one of the two around a field is text.
    A `.jsonl` file has an object a line; a label may be a string, an integer or a
    boolean there. Blank lines are skipped, spaces around a label dropped; a text may
    be empty, a label not.

    Raises:
      UserError: the file cannot be read or is malformed; the message names the line.
    """
    readers: dict[str, Callable[[str, str, str, str], Rows]] = {
        ".csv": _delimited_rows,
        ".tsv": _delimited_rows,
        ".jsonl": _json_rows,
    }
    ending = Path(path).suffix.lower()
    if ending not in readers:
        raise UserError(
            f"{path}: the ending {ending!r} is unknown; data.path takes a .csv, .tsv "
            "or .jsonl file"
        )
    if text_column == label_column:
        raise UserError(
            f"data.text_column and data.label_column are both {text_column!r}: name "
            "two columns"
        )
    texts, labels = [], []
    for line, text, label in readers[ending](
        path, _contents(path), text_column, label_column
    ):
        if not spelling.is_visible(label):
            raise UserError(f"{path}, line {line}: the label is empty")
        texts.append(text)
        labels.append(label.strip())
    if not texts:
        raise UserError(f"{path} has no rows: it needs a text and a label a row")
    return Labelled(texts, labels)


def label_names(labels: list[str]) -> list[str]:
    """The classes in order: as numbers if all of them are, else as text.

    >>> label_names(["10", "9", "10"]), label_names(["10", "9", "none"])
    (['9', '10'], ['10', '9', 'none'])
    """
    names = sorted(set(labels))
    if all(re.fullmatch(r"[-+]?\d+(\.\d+)?", name) for name in names):
        names.sort(key=float)
    return names


def hold_out(
    labels: Sequence[str] | np.ndarray, share: float, seed: int
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " held_out"]]:
    """Rows to train on and rows held out, each in ascending order.

    Of every class, `share` of the rows is held out, to within one row; at least one
    row is on either side, and one of every class is trained on. The same labels, share
    and seed give the same rows.

    Raises:
      UserError: a share not between 0 and 1, or no class has two rows.
    """
    if not 0 < share < 1:
        raise UserError(f"a held-out share of {share}: it must be between 0 and 1")
    size = len(labels)
    if size < 2:
        raise UserError(f"{size} rows cannot be split: at least 2 are needed")
    count = min(max(round(size * share), 1), size - 1)
    shuffled = np.random.default_rng(seed).permutation(size)
    _, classes, sizes = np.unique(
        np.asarray(labels), return_inverse=True, return_counts=True
    )
    if sizes.max() == 1:
        raise UserError(
            f"each of {size} rows has a label of its own, so that none can be held "
            "out: give more rows of a label"
        )
    grouped = shuffled[np.argsort(classes[shuffled], kind="stable")]
    # `count` of them at even distances, hence from each class in proportion; half a
    # distance from either end, or the last class would always give one more.
    held_out = np.diff((np.arange(size + 1) * count + size // 2) // size) == 1
    for name in np.unique(classes):
        rows = np.flatnonzero(classes[grouped] == name)
        if held_out[rows].all():
            held_out[rows[0]] = False
    if not held_out.any():  # what was drawn were whole classes
        held_out[np.flatnonzero(classes[grouped] == sizes.argmax())[0]] = True
    return np.sort(grouped[~held_out]), np.sort(grouped[held_out])


def _contents(path: str) -> str:
    text = read_utf8(path, "data.path takes a .csv, .tsv or .jsonl file")
    if (at := text.find("\0")) >= 0:
        line = text.count("\n", 0, at) + 1
        raise UserError(
            f"{path}, line {line}: a NUL byte; save the file as plain UTF-8 text"
        )
    return text


def _delimited_rows(path: str, text: str, text_column: str, label_column: str) -> Rows:
    delimiter = "\t" if path.lower().endswith(".tsv") else ","
    records = [r for r in read_records(path, text, delimiter) if r.fields]
    if not records:
        raise UserError(f"{path} is empty: it needs a header row that names columns")
    line, header, _ = records.pop(0)
    at = []
    for column in (text_column, label_column):
        found = spelling.places(column, header)
        at += found
        if len(found) != 1:
            wrong = "two columns" if found else "no column"
            raise UserError(
                f"{path}, line {line}: {wrong} {column!r}; there are "
                f"{_named(header)}: set data.text_column and data.label_column"
            )
    at_text, at_label = at
    for line, row in _rows_apart(path, records, delimiter, len(header), at_label):
        if len(row) != len(header):
            raise UserError(
                f"{path}, line {line}: {len(row)} fields where the header has "
                f"{len(header)}; quote fields that hold a "
                f"{'tab' if delimiter == chr(9) else 'comma'} or a newline"
            )
        yield line, row[at_text], row[at_label]


def _rows_apart(
    path: str, records: list[Record], delimiter: str, size: int, at_label: int
) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows with their lines; two quotes that are text join no rows.

    A field in quotes that goes over several lines may be one text, or begin with one
    row's quote and end with another row's. Rows it is where every line has as many
    fields as the header, with labels that occur elsewhere.
    """
    known = {r.fields[at_label] for r in records if len(r.fields) == size}

    def each_fits(lines: Sequence[list[str]]) -> bool:
        return all(len(fields) == size for fields in lines if fields != [""])

    quotes = any(r.lines and not each_fits(r.lines) for r in records)
    for record in records:
        line, row, lines = record
        rows = sum(len(f) == size and f[at_label] in known for f in lines)
        # Most tools quote nothing between tabs; between commas lines often fit.
        if delimiter == "\t" and lines and each_fits(lines):
            blank = sum(fields == [""] for fields in lines)
            if rows + blank == len(lines) or len(row) != size:
                numbered = enumerate(lines, start=line)
                yield from ((n, fields) for n, fields in numbered if fields != [""])
                continue
            if not quotes:  # no field of the file is certain to be a quoted one
                raise holds_rows(path, record)
        # Of the lines of a quoted text one may look like a row, hardly two.
        if rows > 1:
            raise holds_rows(path, record)
        yield line, row


def _json_rows(path: str, text: str, text_column: str, label_column: str) -> Rows:
    # Not splitlines: a JSON string may hold other line separators as they are.
    for line, source in enumerate(text.split("\n"), start=1):
        if not source.strip():
            continue
        try:
            row = json.loads(source)
        except json.JSONDecodeError as error:  # its own line number is always 1
            raise UserError(
                f"{path}, line {line}: not JSON ({error.msg}, column {error.colno})"
            ) from None
        except (ValueError, RecursionError) as error:  # beyond Python's own limits
            raise UserError(f"{path}, line {line}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise UserError(
                f"{path}, line {line}: {_short(row)} is no object; a line looks like "
                f'{{"{text_column}": "...", "{label_column}": "..."}}'
            )
        values = []
        for column in (text_column, label_column):
            names = [*row]
            found = (
                [column]
                if column in row
                else [names[i] for i in spelling.places(column, names)]
            )
            if len(found) != 1:
                wrong = "two keys" if found else "no key"
                raise UserError(
                    f"{path}, line {line}: {wrong} {column!r}; there are "
                    f"{_named(list(row))}: set data.text_column and data.label_column"
                )
            values.append(row[found[0]])
        value, label = values
        if not isinstance(value, str):
            raise UserError(
                f"{path}, line {line}: {text_column!r} is {_short(value)}, not a string"
            )
        if not isinstance(label, str | int):
            raise UserError(
                f"{path}, line {line}: {label_column!r} is {_short(label)}, not a "
                "string, an integer or a boolean"
            )
        if isinstance(label, bool):
            label = "true" if label else "false"
        if re.search("[\ud800-\udfff]", value + str(label)):
            raise UserError(
                f"{path}, line {line}: half of a surrogate pair, which is no character"
            )
        yield line, value, str(label)


def _named(columns: list[str]) -> str:
    return ", ".join(map(_short, columns)) or "none"


def _short(value: object) -> str:
    """The value on one line, cut where it is long."""
    return reprlib.repr(value)
