"""Asking before a command changes a run in the store."""

import sys

from app.errors import ConfigError
from app.printable import show


def confirmed(what: str, yes: bool) -> None:
    """Show `what` would be done, and return if the user wants it: `yes`, or asked on a terminal.

    Raises ConfigError if the answer is no, and where there is no terminal to ask on.
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
    if answer.strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing was changed: the answer was no (--yes does it without asking)")
