"""Asking before a command changes a run in the store."""

import signal
import sys

from app.errors import Cancelled, ConfigError
from app.printable import show
from app.training.preemption import Interrupted


def confirmed(what: str, yes: bool) -> None:
    """Show `what` would be done, and return if the user wants it: `yes`, or asked on a terminal.

    Raises ConfigError if the answer is no, and where there is no terminal to ask on, and Cancelled
    if it is Ctrl-C.
    """
    show(what)
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("nothing was changed: this is no terminal to ask on, so add --yes")
    try:
        answer = input("Do this? [y/N] ")
    except EOFError:
        answer = ""
    except Interrupted as end:
        if end.number != signal.SIGINT:
            raise
        print()  # the line of the question has no end yet
        raise Cancelled("nothing was changed: Ctrl-C at the question") from None
    if answer.strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing was changed: the answer was no (--yes does it without asking)")
