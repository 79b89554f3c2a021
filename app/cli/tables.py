"""What a command shows: aligned lines for people or, with `--json`, one document for programs."""

import argparse
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path

from pydantic import BaseModel

from app.printable import show


def add_json(*commands: argparse.ArgumentParser) -> None:
    """Each of these commands gets the flag `--json`, which its handler finds as `arguments.json`.

    What a handler prints then is only `show_json`, once. What is wrong is told in the log, on
    stderr, and by the exit code, with and without it.
    """
    for command in commands:
        command.add_argument(
            "--json", action="store_true", help="one JSON document on stdout, for programs"
        )


def show_json(document: Mapping[str, object]) -> None:
    """Print the one document of a command.

    Dataclasses and pydantic's models become objects, paths text, and NaN and infinity null, which
    JSON has not.
    """
    print(json.dumps(_plain(document), indent=1, allow_nan=False))


def show_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = ()
) -> None:
    """Print `rows` below the headings, two spaces between columns. Those named in `right` end at
    their right edge, as numbers do."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        cells = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, cell, width in zip(columns, row, widths, strict=True)
        )
        show("  ".join(cells).rstrip())


def _plain(value: object) -> object:
    """`value` in the types that JSON has."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    elif is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
