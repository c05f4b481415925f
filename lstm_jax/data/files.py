"""The user's files."""

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
