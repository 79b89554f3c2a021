"""What a run in the store is taken for."""

import pytest

from app.errors import NotFound
from app.run.layout import LATEST, MANIFEST, AttemptName, CheckpointName
from app.run.record import create_record
from app.run.view import CheckpointState, read_view
from app.stores.contract import Store
from tests.support.stored_run import IDENTITY, commit_step, go_on_from


def test_each_folder_of_a_checkpoint_has_one_state(store: Store) -> None:
    committed, lost, leaving, late = (commit_step(store, step) for step in (10, 20, 30, 40))
    store.delete([lost.key(MANIFEST), leaving.key(MANIFEST)])
    store.put(leaving.quarantine_key("reason.json"), [b"{}"])
    store.put(CheckpointName(50, 1).key("state.json"), [b"{}"])
    store.put(LATEST, [str(lost).encode()])
    go_on_from(store, 10, epoch=2)
    view = read_view(store)
    assert [(stored.name.step, stored.state.name) for stored in view.checkpoints] == [
        (50, "UNFINISHED"),
        (40, "LATE"),
        (30, "LEAVING"),
        (20, "LOST_MANIFEST"),
        (10, "COMMITTED"),
    ]
    assert (view.committed, view.late) == ([committed], [late])
    assert view.of_state(CheckpointState.LEAVING) == [leaving]
    assert view.latest == str(lost) and view.quarantined == {str(leaving)}


def test_what_others_keep_in_the_folder_of_a_run_is_no_checkpoint(store: Store) -> None:
    for key in ("checkpoints/notes.txt", "checkpoints/step-20/manifest.json", "attempts/e1.json"):
        store.put(key, [b"{}"])
    store.put(f"{CheckpointName(20, 1).key()}below/manifest.json", [b"{}"])
    view = read_view(store)
    assert (view.checkpoints, view.attempts) == ([], [])


def test_the_highest_epoch_is_that_of_any_trace(store: Store) -> None:
    assert read_view(store).highest_epoch == 0
    commit_step(store, 10, epoch=3)
    assert read_view(store).highest_epoch == 3
    go_on_from(store, 10, epoch=7)
    assert read_view(store).highest_epoch == 7
    assert read_view(store).newest_attempts(1) == [AttemptName(7, 10)]
    assert read_view(store).newest_attempts(0) == []


def test_a_run_that_is_made_while_it_is_read_is_not_taken_for_one_that_lost_its_record(
    folder: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = folder.get

    def overtaken(key: str, *more: int, **named: int) -> tuple[bytes, str]:
        try:
            return get(key, *more, **named)
        except NotFound:
            if key == LATEST:
                create_record(folder, "run", IDENTITY, 10)
                go_on_from(folder, 0, epoch=1)
            raise

    monkeypatch.setattr(folder, "get", overtaken)
    view = read_view(folder)
    assert view.attempts and view.record is not None


def test_a_run_is_read_with_one_listing(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    create_record(folder, "run", IDENTITY, 10)
    commit_step(folder, 10)
    asked, listing = [], folder.list

    def counted(prefix: str) -> object:
        asked.append(prefix)
        return listing(prefix)

    monkeypatch.setattr(folder, "list", counted)
    view = read_view(folder)
    assert asked == [""]
    assert view.record is not None and view.newest_step == 10
