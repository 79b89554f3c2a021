"""What commands print: aligned lines, or one JSON document that any program can read."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
from pydantic import BaseModel

from app.cli.tables import show_json, show_table


@dataclass(frozen=True)
class Finding:
    loss: float
    places: tuple[Path, ...]


class Model(BaseModel):
    lag: float


def refused(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is not JSON")


def test_a_document_is_json_that_any_program_reads(capsys: pytest.CaptureFixture[str]) -> None:
    finding = Finding(math.nan, (Path("/a"), Path("b")))
    show_json({"found": [finding], "model": Model(lag=math.inf), "said": {3: "\x1b[31m"}})
    out = capsys.readouterr().out
    assert json.loads(out, parse_constant=refused) == {
        "found": [{"loss": None, "places": ["/a", "b"]}],
        "model": {"lag": None},
        "said": {"3": "\x1b[31m"},
    }
    assert "\x1b" not in out, "a terminal that shows it is not commanded"


def test_columns_are_as_wide_as_their_widest_cell(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("name", "size"), [("a", "1"), ("long name", "12,345")], right={"size"})
    assert capsys.readouterr().out.splitlines() == [
        "name         size",
        "a               1",
        "long name  12,345",
    ]
