"""A run that is read again and again costs one listing, and what has changed."""

from pathlib import Path

import pytest

from app.errors import NotFound
from app.observe.remembered import RememberedStore, RunBelow
from app.observe.reported_run import read_run
from app.observe.rows import encode_row
from app.run.layout import LATEST, METRICS_KEY
from app.run.record import create_record
from app.stores.contract import Store
from app.stores.opening import open_place, open_store
from tests.support.asked import Asked
from tests.support.rows import row
from tests.support.stored_run import IDENTITY, commit_step


def test_only_what_has_changed_is_read_again(store: Store) -> None:
    create_record(store, "run", IDENTITY, 100)
    store.put(METRICS_KEY, [encode_row(row(1))])
    commit_step(store, 1)
    counted = Asked(store)
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


def test_a_large_object_is_not_kept(tmp_path: Path) -> None:
    run = open_store(f"file://{tmp_path}/store", "run")
    run.put("small", [b"x"])
    run.put("large", [b"x" * (3 << 20)])
    asked = Asked(run)
    remembered = RememberedStore(asked)
    for _ in range(2):
        remembered.look()
        assert len(remembered.get("large")[0]) == 3 << 20 and remembered.get("small")[0] == b"x"
    assert asked.asked.count("large") == 2 and asked.asked.count("small") == 1
