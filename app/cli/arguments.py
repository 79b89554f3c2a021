"""What each command's parser is made of: how a command is added, and the types of its flags."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from app.errors import UsageError
from app.settings.combined import Settings
from app.settings.local_paths import local_path
from app.settings.variables import SECTIONS, variables
from app.training.preemption import StopRequest

Handler = Callable[[Settings, argparse.Namespace, StopRequest], None]


class Parser(argparse.ArgumentParser):
    """Reports a bad command line as UsageError, where argparse would print and exit with 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see: python -m app --help)")


class Commands:
    """The commands below a parser. Each of them takes every variable as a flag."""

    def __init__(self, parser: argparse.ArgumentParser, shared: Parser, metavar: str) -> None:
        self._shared = shared
        self._parsers = parser.add_subparsers(metavar=metavar, required=True, parser_class=Parser)

    def add(self, name: str, handler: Handler, text: str) -> argparse.ArgumentParser:
        """A command that `handler` carries out; its own arguments are added to what is returned."""
        command = self._parsers.add_parser(
            name, help=text, description=text, parents=[self._shared], allow_abbrev=False
        )
        command.set_defaults(handler=handler)
        return command

    def group(self, name: str, text: str) -> "Commands":
        """A word that needs a second one, such as `checkpoints list`."""
        return Commands(self._parsers.add_parser(name, help=text), self._shared, "VERB")


def settings_flags() -> Parser:
    """A parent parser with one flag for each variable, grouped by section."""
    shared = Parser(add_help=False, allow_abbrev=False)
    groups = {name: shared.add_argument_group(f"{name} settings") for name in SECTIONS}
    for variable in variables():
        text = (variable.info.description or "").replace("%", "%%")
        groups[variable.section].add_argument(
            variable.flag, metavar=variable.unit.upper() or "VALUE", help=text
        )
    return shared


def place(text: str) -> Path:
    """The type of a flag that names a file or folder."""
    try:
        return local_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error


def number_between(low: float, high: float) -> Callable[[str], float]:
    """The type of a flag that takes a number; both bounds are allowed."""

    def number(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low:g} and {high:g}")
        return value

    return number


def count_from(low: int, high: int | None = None) -> Callable[[str], int]:
    """The type of a flag that takes a whole number; both bounds are allowed."""

    def count(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"{text} is below {low}")
        if high is not None and value > high:
            raise argparse.ArgumentTypeError(f"{text} is above {high:,}")
        return value

    return count
