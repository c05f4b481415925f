"""From the command line to a function, with errors that fit one line."""

import sys
from collections.abc import Callable

from absl import app, flags, logging

from lstm_jax.errors import UserError


def run(main: Callable[[], None]) -> None:
    """Parses the flags and calls `main`.

    A `UserError`, or a flag or config field that does not exist, ends the program
    with one line on stderr and exit code 2.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
        except flags.UnrecognizedFlagError as error:
            _stop(f"{error} (see --help)")
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
            _stop(str(error))
        except OSError as error:
            _stop(f"cannot read {error.filename}: {error.strerror}")
        if len(rest) > 1:
            _stop(f"unexpected argument {rest[1]!r}: flags begin with --")
        if not flags.FLAGS["verbosity"].present:
            # absl shows every library's INFO lines from here on; Orbax has many.
            logging.set_verbosity(logging.WARNING)
        return rest

    def guarded(argv: list[str]) -> None:
        del argv
        try:
            main()
        except UserError as error:
            _stop(str(error))

    app.run(guarded, flags_parser=parse)


def _stop(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
