"""A run that is read again and again costs one listing, and what has changed."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import NotFound
from app.observe.remembered import GrowingRows, RememberedStore, RunBelow
from app.observe.reported_run import read_run
from app.observe.rows import encode_row
from app.run.layout import LATEST, METRICS_KEY
from app.run.record import create_record
from app.stores.contract import Store
from app.stores.opening import open_place, open_store
from tests.support.rows import row
from tests.support.stored_run import IDENTITY, commit_step


class Counted:
    """A store that writes down what is asked of it."""

    def __init__(self, store: Store) -> None:
        self._store, self.asked = store, list[str]()
        self.uri = store.uri

    def get(self, key: str, *bounds: int) -> tuple[bytes, str]:
        self.asked.append(key)
        return self._store.get(key, *bounds)

    def list(self, prefix: str):  # type: ignore[no-untyped-def]
        self.asked.append(f"list {prefix}")
        return self._store.list(prefix)


def test_only_what_has_changed_is_read_again(store: Store) -> None:
    create_record(store, "run", IDENTITY, 100)
    store.put(METRICS_KEY, [encode_row(row(1))])
    commit_step(store, 1)
    counted = Counted(store)
    remembered = RememberedStore(counted)
    remembered.look()
    first = read_run(remembered)
    counted.asked.clear()
    remembered.look()
    assert read_run(remembered).rows == first.rows
    assert counted.asked == [LATEST, "list "]
    counted.asked.clear()
    store.put(METRICS_KEY, [encode_row(row(1)), encode_row(row(2))])
    remembered.look()
    assert [found.step for found in read_run(remembered).rows] == [1, 2]
    assert counted.asked == [LATEST, "list ", METRICS_KEY]


def test_a_run_below_a_prefix_is_the_run(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/store"
    run = open_store(uri, "run")
    create_record(run, "run", IDENTITY, 100)
    commit_step(run, 1)
    below = RunBelow(open_place(uri), "run")
    assert below.uri == run.uri
    assert list(below.list("")) == list(run.list(""))
    assert list(below.list("checkpoints")) == list(run.list("checkpoints"))
    assert below.get("run.json") == run.get("run.json")
    with pytest.raises(NotFound):
        below.get("gone.json")


def test_rows_that_grow_are_the_rows_of_the_whole(tmp_path: Path) -> None:
    store, rows = open_store(f"file://{tmp_path}", "run"), GrowingRows()
    lines = [encode_row(row(step)) for step in range(1, 7)]
    for count in (0, 2, 5, 3, 6):  # 3: an attempt went on from an earlier step
        store.put(METRICS_KEY, lines[:count])
        assert [found.step for found in rows.read(store)] == list(range(1, count + 1))


def test_rows_without_end_are_thinned(tmp_path: Path) -> None:
    store, rows = open_store(f"file://{tmp_path}", "run"), GrowingRows(most_rows=100)
    lines = [encode_row(replace(row(step), loss=2.0)) for step in range(1, 10_001)]
    store.put(METRICS_KEY, lines)
    found = rows.read(store)
    assert 90 <= len(found) <= 101
    assert (found[0].step, found[-1].step) == (1, 10_000)
