"""From the command line to a function, with errors that fit one line."""

import io
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from logging import ERROR, LogRecord
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from lstm_jax import processes
from lstm_jax.config import Config
from lstm_jax.data.files import local_path
from lstm_jax.errors import Interrupted, UserError

# What a shell says of a program that was ended because nobody reads its output.
_SIGPIPE = 128 + 13


def define_config(default: Path) -> "flags.FlagHolder[Config]":
    """Defines --config, a file with a function `get_config`.

    Args:
      default: the file where the flag is not given.

    Returns:
      The flag; `--config.FIELD=VALUE` changes a field of its value.
    """
    try:
        # With a default, this already parses the overrides of the command line.
        return config_flags.DEFINE_config_file(
            "config",
            default=str(default),
            help_string="The experiment; --config.FIELD=VALUE changes a field of it.",
        )
    except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as error:
        reason = str(error.args[0]).strip("'\"").replace(" Did you", ". Did you")
        _stop(f"--config: no such field or value: {reason}")


def config_path() -> Path:
    """The file that --config names.

    Raises:
      UserError: there is none.
    """
    path = Path(config_flags.get_config_filename(flags.FLAGS["config"]))
    if not os.path.isfile(path):  # False also of a name that cannot be one
        raise UserError(_no_config(path))
    return path


def _no_config(path: Path) -> str:
    """That there is no such file, and where it may be."""
    checkout = Path(__file__).parents[1]
    there = checkout / path
    if path.is_absolute():
        return f"no config file {path}: see the folder {checkout / 'configs'}"
    where = (
        f"there is {there}" if os.path.isfile(there) else f"see {checkout / 'configs'}"
    )
    return f"no config file {path} in {Path.cwd()}: {where}"


def _unread_config(argv: list[str], error: OSError) -> str:
    """Why a config could not be read; the library has an error of its own for it."""
    # The flag tells its file only where all was well.
    given = re.findall(r"^--?config(?:=|\n)(.*)$", "\n".join(argv), re.MULTILINE)
    path = Path(given[-1].partition(":")[0] if given else "")
    if not os.path.isfile(path):  # False also of a name that cannot be one
        return _no_config(path)
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    if cause.filename is None:
        return f"--config={path} cannot be read ({cause})"
    return f"--config={path}: cannot read {cause.filename} ({cause.strerror})"


def changed_fields() -> set[str]:
    """The fields that the command line changes, as "model.cell"."""
    return set(config_flags.get_override_values(flags.FLAGS["config"]))


def run(main: Callable[..., None], takes: str = "", answers: bool = False) -> None:
    """Parses the flags and calls `main`.

    Args:
      main: is called with the argument that is no flag, if it takes one.
      takes: what that argument is; "": there is none.
      answers: `main` makes nothing but what it prints, and ends where nobody reads it
        any more; else it goes on without.

    A `UserError`, or a flag or config field that does not exist, ends the program
    with one line on stderr and exit code 2.
    """
    streams = _open_streams(answers)

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS([_with_home(argument) for argument in argv])
        except flags.UnrecognizedFlagError as error:
            _stop(f"{error} (see --help)")
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
            _stop(str(error))
        except OSError as error:
            _stop(_unread_config(argv, error))
        except SyntaxError as error:
            _stop(f"--config: {error.filename}, line {error.lineno}: {error.msg}")
        except ImportError as error:
            _stop(f"--config: {error}")
        except SystemExit as stop:
            # After help that was asked for absl ends with 1, as after an error.
            if stop.code == 1 and _asks_for_help(argv):
                sys.exit(0)
            raise
        wanted = 2 if takes else 1
        if len(rest) > wanted:
            _stop(f"unexpected argument {rest[wanted]!r}: flags begin with --")
        if len(rest) < wanted:
            _stop(f"give {takes} (see --help)")
        if not flags.FLAGS["verbosity"].present:
            # absl shows every library's INFO lines from here on; Orbax has many.
            logging.set_verbosity(logging.WARNING)
            # Not the tracebacks of the errors that Orbax raises besides: they are told
            # in one line.
            logging.get_absl_logger().addFilter(_is_no_error)
        return rest

    def guarded(argv: list[str]) -> None:
        threading.excepthook = _show_unless_unwritable
        try:
            main(*argv[1:])
            processes.finish()
            _flush(streams)
        except KeyboardInterrupt as error:
            if not isinstance(error, Interrupted):  # Ctrl-C before it trains, or twice
                error = Interrupted(signal.SIGINT)
            processes.finish()
            number, step = error.number, error.step
            where = "" if step is None else f" at step {step}, which is saved"
            print(
                f"interrupted{where}: the same command goes on",
                file=sys.stderr,
                flush=True,
            )
            sys.stdout.flush()
            # Not sys.exit: XLA may be compiling in another thread, and crashes where
            # the interpreter is taken down under it.
            os._exit(128 + number)
        except Exception as error:
            line = _line_of(error)
            if processes.several():
                _end_all(error, line)
            if line is None:
                raise
            _stop(line)

    app.run(guarded, flags_parser=parse)


def _with_home(argument: str) -> str:
    """Expands `~` in --config=~/file.py, which a shell does not."""
    name, _, path = argument.partition("=")
    if name in ("-config", "--config") and path.startswith("~"):
        return f"{name}={local_path(path)}"
    return argument


def _is_no_error(record: LogRecord) -> bool:
    return record.levelno < ERROR


class _Output(io.TextIOWrapper):
    """Writes text to a file descriptor; where that fails, what follows is dropped.

    A run is worth more than what is shown of it. Where the reader has gone, as head
    goes after its lines, that is no error.

    Attributes:
      problem: why not all was written, None where all was or the reader has gone.
    """

    # Here and not below the buffer: Ctrl-C that comes while a method of Python's
    # writes would leave in the buffer what is written already.

    def __init__(self, descriptor: int, ends: bool, **options: Any) -> None:
        file = io.FileIO(descriptor, "w", closefd=False)
        super().__init__(io.BufferedWriter(file), **options)
        self._descriptor, self._ends = descriptor, ends
        self.problem: str | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):
            self.problem = error.strerror
        if self._ends:
            os._exit(_SIGPIPE if self.problem is None else _unwritten(self.problem))
        # For all that writes there, libraries in C among them.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._descriptor)
        os.close(null)


def _open_streams(answers: bool) -> list[_Output]:
    """Lets stdout and stderr raise no errors; what was closed is there, and empty."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Or the next file that is opened, as a checkpoint's, would take its place
            # and get what libraries in C write there.
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:  # closed before Python began
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    opened = []
    for descriptor, name in enumerate(("stdout", "stderr"), start=1):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):  # else a caller's own
            stream.flush()
            output = _Output(
                descriptor,
                answers and name == "stdout",
                encoding=stream.encoding,
                errors="backslashreplace",
                line_buffering=stream.line_buffering or stream.write_through,
            )
            setattr(sys, name, output)
            opened.append(output)
    return opened


def _flush(streams: list[_Output]) -> None:
    """Writes what is still to be written; ends the program where stdout took not all.

    Without stdout there is no result to read, whatever else is done.
    """
    sys.stdout.flush()
    for output in streams:
        if output.problem is not None and output.fileno() == 1:
            sys.exit(_unwritten(output.problem))


def _unwritten(problem: str) -> int:
    """Says why stdout was not written; the exit code."""
    print(f"error: cannot write to stdout ({problem})", file=sys.stderr, flush=True)
    return 2


def _asks_for_help(argv: list[str]) -> bool:
    """Whether one of absl's flags of help is there."""
    names = {argument.lstrip("-") for argument in argv[1:] if argument.startswith("-")}
    return not names.isdisjoint({"help", "helpshort", "helpfull", "helpxml", "?"})


def _line_of(error: Exception) -> str | None:
    """What a person can mend, in a line; None: a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, flags.IllegalFlagValueError):
        return f"{error}: does the file's get_config return a config?"
    # XLA has no exception of its own for it.
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return (
            "not enough memory: lower batch_size, data.length or the sizes of the "
            f"model ({str(error)[:200]})"
        )
    return None


def _end_all(error: Exception, line: str | None) -> NoReturn:
    """Ends this process and the others, which wait for it."""
    if line is not None:
        processes.fail(_one_line(line), 2)
    reason = _one_line(str(error))[:200]
    # What a collective raises where the connection to another process is gone.
    if "Gloo" in reason or "coordination" in reason:
        processes.connection_lost(f"a process is lost ({reason})")
    traceback.print_exc()
    processes.fail(f"{type(error).__name__}: {reason}", 1)


def _show_unless_unwritable(error: threading.ExceptHookArgs) -> None:
    """Of a full disk the main thread tells, not TensorBoard's as well."""
    if not issubclass(error.exc_type, OSError):
        threading.__excepthook__(error)


def ask(prompt: str, answer: Callable[[str], None]) -> None:
    """Asks for lines and answers them, until the end of input or Ctrl-C."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        # An error of decoding would lose what a pipe sent along with the line; what is
        # not UTF-8 is the answer's to refuse.
        sys.stdin.reconfigure(errors="surrogateescape")
    while True:
        try:
            answer(input(prompt))
        except UserError as error:
            print(error)
        except (EOFError, KeyboardInterrupt):
            print()
            return


def _stop(message: str) -> NoReturn:
    print(f"error: {_one_line(message)}", file=sys.stderr)
    sys.exit(2)


def _one_line(message: str) -> str:
    # Some libraries quote their own quotes and line ends.
    return " ".join(message.replace("\\n", " ").replace("\\'", "'").split())
