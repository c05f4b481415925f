"""The one exception that means "the user can mend this"."""


class UserError(ValueError):
    """A mistake that the person at the command line can mend.

    The message is one line: what is wrong and what to do about it. The command
    line prints it and exits with code 2; anything else is a bug and shows its
    traceback.
    """
