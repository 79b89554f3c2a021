"""The rows of a page: a bounded number of them, whatever the store holds, and the telling ones."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import Damaged
from app.observe.rows import encode_row
from app.observe.thinned import GrowingRows, thinned_rows
from app.run.layout import METRICS_KEY
from app.stores.contract import Store
from app.stores.opening import open_store
from tests.support.asked import Asked
from tests.support.rows import row


@pytest.fixture
def run(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}", "run")


def test_rows_that_grow_are_the_rows_of_the_whole(run: Store) -> None:
    rows, lines = GrowingRows(), [encode_row(row(step)) for step in range(1, 7)]
    for count in (0, 2, 5, 3, 6):  # 3: an attempt went on from an earlier step
        run.put(METRICS_KEY, lines[:count])
        assert [found.step for found in rows.read(run)] == list(range(1, count + 1))


def test_rows_without_end_are_thinned_and_those_with_a_validation_loss_stay(run: Store) -> None:
    rows = GrowingRows(most_rows=100)
    lines = [
        encode_row(replace(row(step, 2.0), validation_loss=3.0 if step % 500 == 7 else None))
        for step in range(1, 10_001)
    ]
    run.put(METRICS_KEY, lines)
    found = rows.read(run)
    assert 60 <= len(found) <= 100
    assert (found[0].step, found[-1].step) == (1, 10_000)
    assert [r.step for r in found if r.validation_loss] == list(range(7, 10_001, 500))
    run.put(METRICS_KEY, [*lines, encode_row(row(10_001, 2.0))])
    assert len(rows.read(run)) <= 101 and rows.read(run)[-1].step == 10_001


def test_where_every_row_has_a_validation_loss_they_are_thinned_too(run: Store) -> None:
    evaluated = [encode_row(replace(row(s, 2.0), validation_loss=3.0)) for s in range(1, 10_001)]
    run.put(METRICS_KEY, evaluated)
    found = GrowingRows(most_rows=100).read(run)
    assert 45 <= len(found) <= 100 and found[-1].step == 10_000


def test_a_page_and_a_plan_never_get_more_rows_than_a_curve_can_show(run: Store) -> None:
    run.put(METRICS_KEY, [encode_row(row(step, 2.0)) for step in range(1, 50_001)])
    assert 10_000 <= len(thinned_rows(run)) <= 20_000


def test_rows_that_no_run_writes_are_refused_by_their_size(run: Store) -> None:
    run.put(METRICS_KEY, [b"x" * 2_000])
    with pytest.raises(Damaged, match="more than 1000 bytes"):
        GrowingRows(most_bytes=1_000).read(run)


def test_what_has_not_changed_is_not_read_again(run: Store) -> None:
    run.put(METRICS_KEY, [encode_row(row(1))])
    asked, rows = Asked(run), GrowingRows()
    first = rows.read(asked)
    assert rows.read(asked) is first and asked.asked.count(METRICS_KEY) == 1
