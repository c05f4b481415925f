"""The exceptions that mean "the user can mend this" and "the user wants an end"."""


class UserError(ValueError):
    """A mistake that the person at the command line can mend.

    The message is one line: what is wrong and what to do about it. The command
    line prints it and exits with code 2; anything else is a bug and shows its
    traceback.
    """


class Interrupted(KeyboardInterrupt):
    """A signal ended a run; the same command goes on.

    Attributes:
      number: of the signal.
      step: that was saved, None of a run that had not begun to train.
    """

    def __init__(self, number: int, step: int | None = None) -> None:
        super().__init__(number, step)
        self.number, self.step = number, step
