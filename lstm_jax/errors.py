"""The exceptions that mean "the user can mend this" and "the user wants an end"."""

# Characters of a message, of which the first say what is wrong, the last what to do.
_LONGEST = 2000


class UserError(ValueError):
    """A mistake that the person at the command line can mend.

    The message is one line: what is wrong and what to do about it. The command
    line prints it and exits with code 2; anything else is a bug and shows its
    traceback.
    """

    def __init__(self, message: str) -> None:
        # What it quotes, be it a name or another library, knows no such limits.
        line = " ".join(message.splitlines())
        if len(line) > _LONGEST:
            half = _LONGEST // 2
            line = f"{line[:half]} ... {line[-half:]}"
        super().__init__(line)


class Interrupted(KeyboardInterrupt):
    """A signal ended a run; the same command goes on.

    Attributes:
      number: of the signal.
      step: that was saved, None of a run that had not begun to train.
    """

    def __init__(self, number: int, step: int | None = None) -> None:
        super().__init__(number, step)
        self.number, self.step = number, step
