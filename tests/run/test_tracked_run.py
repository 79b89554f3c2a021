"""The name of a run in trackers: made up once, kept, and another one after a rollback."""

from pathlib import Path

import pytest

from app.errors import Damaged
from app.run.layout import TRACKERS_KEY
from app.run.rollback import carry_out, rollback_to
from app.run.tracked_run import begin_anew, read_tracked_run, remember_mlflow_run, tracked_run
from app.run.view import read_view
from app.stores.contract import Store
from app.stores.opening import open_store
from tests.support.stored_run import FreeLease, commit_step


class OperatorsLease(FreeLease):
    """The lease of a command, taken after all attempts."""

    epoch, holder = 9, "operator:1:abc"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path.as_uri(), "run")


def test_it_is_made_up_once_and_no_other_run_has_it(store: Store, tmp_path: Path) -> None:
    assert read_tracked_run(store) is None
    first = tracked_run(store)
    assert tracked_run(store) == first == read_tracked_run(store)
    assert tracked_run(open_store(tmp_path.as_uri(), "other")).id != first.id


def test_the_id_that_a_server_gave_is_kept(store: Store) -> None:
    tracked = tracked_run(store)
    remember_mlflow_run(store, tracked, "f00d")
    known = tracked_run(store)
    assert (known.mlflow_run_id, known.name) == ("f00d", tracked.name)


def test_steps_that_an_operator_sets_aside_begin_another_run(store: Store) -> None:
    for step in (2, 4, 6):
        commit_step(store, step)
    tracked = tracked_run(store)
    remember_mlflow_run(store, tracked, "f00d")
    carry_out(rollback_to(read_view(store), "4"), store, OperatorsLease(store))  # type: ignore[arg-type]
    after = tracked_run(store)
    assert (after.name, after.mlflow_run_id) == (f"{tracked.id}-1", None)
    assert after.title("run") == "run (after rollback 1)"
    remember_mlflow_run(store, tracked, "f00d")  # of an attempt that ended meanwhile
    assert tracked_run(store).mlflow_run_id is None


def test_a_run_that_no_tracker_knows_gets_no_name_by_a_rollback(store: Store) -> None:
    begin_anew(store)
    assert read_tracked_run(store) is None


def test_a_damaged_name_is_not_replaced_by_another_one(store: Store) -> None:
    store.put(TRACKERS_KEY, [b'{"id": "NOT ONE"}'])
    with pytest.raises(Damaged, match="restore it, or remove it"):
        tracked_run(store)
