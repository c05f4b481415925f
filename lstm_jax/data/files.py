"""The user's files."""

import csv
import errno
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lstm_jax.errors import UserError

# Of a `Path` made of an address one slash is left.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|(az|file|gs|hdfs|hf|https?|s3):/")


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return a path as its user means it: `~` is the home folder.

    A shell expands `~` at the beginning of a word alone, not in `--workdir=~/run`.

    Args:
      path: The path; to be expanded once, where it comes from the user.

    Raises:
      UserError: There is no such home folder, the path is the address of a bucket, or
        a name in it is longer than the file system allows.
    """
    text = os.fspath(path)
    if _ADDRESS.match(text):
        raise UserError(
            f"{text} is no local path, and buckets are not supported yet: give a local "
            "folder or file"
        )
    expanded = os.path.expanduser(text)
    user = re.match(r"~[^/]*", expanded)
    # A file may be called so, `~$table.csv`.
    if user and (user[0] == "~" or not os.path.lexists(text)):
        raise UserError(
            f"{text}: no home folder {user[0]} is known: set HOME, or give a path from "
            "the root"
        )
    try:
        os.lstat(expanded)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(
                f"{text[:60]}... is no path here ({error.strerror}): give a shorter one"
            ) from None
    except ValueError:  # a zero byte: who reads or writes it tells
        pass
    return Path(expanded)


def read_utf8(path: str, takes: str) -> str:
    """The text of a file.

    Args:
      path: the file.
      takes: what to give instead of a file that cannot be read, for the error.

    Raises:
      UserError: it cannot be read, or is not UTF-8; the message names the line.
    """
    place = local_path(path)
    try:
        data = place.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot read {path[:200]!r} ({reason}): {takes}") from None
    try:
        # Not "utf-8-sig": it would count the bytes from behind the mark.
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: not UTF-8 (byte {error.start}); convert it, for "
            "example with iconv -t UTF-8"
        ) from None


class Record(NamedTuple):
    """A record of a delimited text.

    Attributes:
      line: the line on which it begins, from 1.
      fields: what it holds; a blank line is a record without fields.
      lines: the fields of each of its lines by itself, where a quoted field holds it
        together over several; else ().
    """

    line: int
    fields: list[str]
    lines: Sequence[list[str]] = ()


def read_records(path: str, text: str, delimiter: str = ",") -> Iterator[Record]:
    r"""Yield the records of a delimited text.

    A field in quotes may hold delimiters, newlines and doubled quotes. Between tabs
    most tools quote nothing, so that there a quote is text unless it opens a field that
    another one closes; between commas it is an error at the beginning of any other.

    >>> [r.fields for r in read_records("a.tsv", '"5""\t"b" c\t"d', "\t")]
    [['"5""', '"b" c', '"d']]

    Args:
      path: where the text is from, for the error.
      text: the text.
      delimiter: what separates fields, "," or a tab.

    Raises:
      UserError: quotes are not as they should be; the message names the line.
    """
    return _by_tabs(text) if delimiter == "\t" else _by_commas(path, text)


def holds_rows(path: str, record: Record) -> UserError:
    """Return the error of a record whose lines are rows by themselves."""
    last = record.line + len(record.lines) - 1
    return UserError(
        f"{path}, line {record.line}: a quoted field goes on to line {last}, over "
        "lines that are rows by themselves; if its quote is text, quote the field and "
        "double it; if not, take the newlines out"
    )


def _by_commas(path: str, text: str) -> Iterator[Record]:
    read: list[str] = []  # the lines of a record

    def lines() -> Iterator[str]:
        for line in io.StringIO(text, newline=""):
            read.append(line)
            yield line

    # strict: an unclosed quote is an error, not the rest of the file in one field.
    reader = csv.reader(lines(), strict=True)
    while True:
        read.clear()
        line = reader.line_num + 1
        # The limit is the process's: it is raised for no longer than one record.
        limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{path}, line {line}: {error}; a quoted field ends with a quote, and "
                "a quote inside it is doubled"
            ) from None
        finally:
            csv.field_size_limit(limit)
        if row is None:
            return
        yield Record(line, row, _alone(read, ","))


def _by_tabs(text: str) -> Iterator[Record]:
    at, line = 0, 1
    while at < len(text):
        fields, end = _scan(text, at, "\t")
        lines = _LINE_END.split(text[at:end])
        yield Record(line, fields if end > at else [], _alone(lines, "\t"))
        line += len(lines)
        at = end + (2 if text.startswith("\r\n", end) else 1)


def _alone(lines: Sequence[str], delimiter: str) -> Sequence[list[str]]:
    """The fields of each line, where there are several."""
    if len(lines) == 1:
        return ()
    return [_scan(line.rstrip("\r\n"), 0, delimiter)[0] for line in lines]


def _scan(text: str, at: int, delimiter: str) -> tuple[list[str], int]:
    """The fields of the record that begins at a place, and where it ends."""
    fields = []
    while True:
        if match := _QUOTED[delimiter].match(text, at):
            fields.append(match[1].replace('""', '"'))
        else:
            match = _BARE[delimiter].match(text, at)
            assert match is not None  # of an empty field as well
            fields.append(match[0])
        at = match.end()
        if text[at : at + 1] != delimiter:
            return fields, at
        at += 1


_LINE_END = re.compile(r"\r\n|\r|\n")
# A whole field: possessive, as a doubled quote never closes one.
_QUOTED = {
    d: re.compile(rf'"([^"]*+(?:""[^"]*+)*+)"(?=[{d}\r\n]|\Z)') for d in (",", "\t")
}
_BARE = {d: re.compile(rf"[^{d}\r\n]*+") for d in (",", "\t")}
