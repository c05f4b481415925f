"""The user's files."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from lstm_jax.errors import UserError


def read_utf8(path: str, takes: str) -> str:
    """The text of a file.

    Args:
      path: the file.
      takes: what to give instead of a file that cannot be read, for the error.

    Raises:
      UserError: it cannot be read, or is not UTF-8; the message names the line.
    """
    try:
        data = Path(path).read_bytes()
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


def read_records(
    path: str, text: str, delimiter: str = ","
) -> Iterator[tuple[int, list[str]]]:
    """The records of a delimited text, each with the line on which it begins.

    A blank line is a record without fields.

    Args:
      path: where the text is from, for the error.
      text: the text.
      delimiter: what parts fields.

    Raises:
      UserError: quotes are not as they should be; the message names the line.
    """
    # strict: an unclosed quote is an error, not the rest of the file in one field.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1  # a quoted field may hold newlines
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
        yield line, row
