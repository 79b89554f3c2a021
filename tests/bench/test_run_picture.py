"""The picture of a run: curves from its rows, and lines of its log as they were printed."""

from collections.abc import Sequence
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from app.observe.reported_run import ReportedRun
from app.observe.rows import Row
from bench.run_picture import excerpt, picture
from tests.support.rows import row
from tests.support.stored_run import attempt_record

SVG = "{http://www.w3.org/2000/svg}"
ROWS = [replace(row(step, 10 / step), validation_loss=9.0 / step) for step in range(1, 101)]
STEPS = [f"12:00:00 step {step}/100 | loss {10 / step:.4f}" for step in range(1, 101)]
LOG = [f"12:00:00 line {number}" for number in range(1, 21)] + STEPS + ["target <reached> & done"]


def run(rows: Sequence[Row] = ROWS) -> ReportedRun:
    attempts = [attempt_record(1), attempt_record(2, start_step=40)]
    return ReportedRun(name="tiny", record=None, rows=rows, attempts=attempts)


def test_a_picture_has_a_curve_for_each_number_and_the_log_as_it_was_printed() -> None:
    tree = ElementTree.fromstring(picture(run(), LOG))
    texts = [element.text or "" for element in tree.iter(f"{SVG}text")]
    titles = [text for text in texts if text in {"train loss", "validation loss"}]
    assert titles == ["train loss", "validation loss"]
    assert len(list(tree.iter(f"{SVG}polyline"))) == 4
    assert [text for text in texts if text.startswith("12:00:00 line")] == LOG[:8]
    assert texts[-1] == "target <reached> & done"


def test_where_an_attempt_went_on_every_curve_has_a_mark() -> None:
    tree = ElementTree.fromstring(picture(run(), LOG))
    assert sum(element.get("class") == "mark" for element in tree.iter(f"{SVG}line")) == 4


def test_an_excerpt_has_begin_steps_and_end_and_says_that_lines_are_missing() -> None:
    shown = excerpt(LOG)
    assert shown[:9] == [*LOG[:8], "…"]
    assert shown[-8:] == LOG[-8:]
    assert shown[9:-9] == STEPS[:93:8]
    assert shown[-9] == "…"


def test_a_short_log_is_shown_whole_without_the_prefix_of_compose() -> None:
    assert excerpt(["train-1  | one", "", "train-1  | two | 2"]) == ["one", "two | 2"]


def test_a_run_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="tiny has no rows yet"):
        picture(run([]), LOG)
