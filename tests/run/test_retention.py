"""What earlier attempts left: set aside whole, removed, or left alone, and by whom."""

import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from app.errors import AccessDenied, Fenced
from app.run.checkpoints import read_latest, read_manifest
from app.run.fetching import newest_valid
from app.run.layout import LATEST, MANIFEST, CheckpointName
from app.run.retention import clean_up, prune, quarantine, remove_unfinished, set_late_aside
from app.run.view import read_view
from app.stores.contract import Store
from app.stores.limits import StoreLimits
from app.stores.opening import open_store
from tests.support.mortal_store import Died, MortalStore
from tests.support.store_contents import leave_half_written
from tests.support.stored_run import FILES, FreeLease, commit_step, committed_steps, go_on_from

REASON = "does not match its SHA-256"


class FadingLease(FreeLease):
    """A lease that is lost at look number `looks`. `then` is what was in the store at that time."""

    def __init__(self, store: Store, looks: int) -> None:
        super().__init__(store)
        self._left, self.then = looks, None

    def check(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.then = everything(self._store)
            raise Fenced("held by another")


def everything(store: Store) -> Any:
    objects = {info.key: store.get(info.key)[0] for info in store.list("")}
    return objects, [half.key for half in store.half_written()]


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Store]:
    """One empty store after the other."""
    return (open_store(f"file://{tmp_path}/{number}", "run") for number in count())


def test_quarantine_keeps_every_byte_and_the_reason(folder: Store, tmp_path: Path) -> None:
    name = commit_step(folder, 20)
    target = quarantine(folder, name, "wrong hash", FreeLease(folder))
    assert read_view(folder).checkpoints == []
    kept = tmp_path / "run" / target
    assert {path.name for path in kept.iterdir()} == {*FILES, MANIFEST, "reason.json"}
    assert json.loads((kept / "reason.json").read_text())["reason"] == "wrong hash"


def test_what_cannot_be_cleaned_up_stops_no_start_and_is_said(
    folder: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = CheckpointName(20, 1)
    folder.put(left.key("model.safetensors"), [b"half"])

    def refuse(keys: list[str]) -> None:
        raise AccessDenied(f"{keys[0]} is another user's")

    monkeypatch.setattr(folder, "delete", refuse)
    clean_up(folder, read_view(folder), 2, FreeLease(folder))
    assert "not all cleaned up" in caplog.text
    assert left.key("manifest.json") in caplog.text
    assert [stored.name for stored in read_view(folder).checkpoints] == [left]


def test_an_upload_that_was_cut_short_is_removed(folder: Store) -> None:
    keep = commit_step(folder, 20)
    folder.put(CheckpointName(40, 1).key("model.safetensors"), [b"half"])
    assert remove_unfinished(folder, read_view(folder), 2, FreeLease(folder)) == [
        CheckpointName(40, 1)
    ]
    assert [stored.name for stored in read_view(folder).checkpoints] == [keep]


def test_who_has_lost_the_run_unknowingly_leaves_the_uploads_of_its_successor_alone(
    folder: Store,
) -> None:
    folder.put(CheckpointName(40, 3).key("model.safetensors"), [b"half"])
    assert remove_unfinished(folder, read_view(folder), 2, FreeLease(folder)) == []
    assert [str(stored.name) for stored in read_view(folder).checkpoints] == [
        str(CheckpointName(40, 3))
    ]


def test_a_late_commit_is_set_aside_and_the_pointer_names_the_one_before(folder: Store) -> None:
    ours = commit_step(folder, 10)
    go_on_from(folder, 10, epoch=2)
    late = commit_step(folder, 30)
    assert set_late_aside(folder, read_view(folder), FreeLease(folder)) == [late]
    assert [stored.name for stored in read_view(folder).checkpoints] == [ours]
    assert read_latest(folder) == str(ours)
    assert any(info.key.endswith("reason.json") for info in folder.list("quarantine/"))
    assert set_late_aside(folder, read_view(folder), FreeLease(folder)) == []


def test_the_best_by_loss_the_newest_and_the_protected_stay(folder: Store) -> None:
    losses = {20: 5.0, 40: 1.0, 60: 4.0, 80: 2.0, 100: 3.0, 120: 9.0}
    for step, loss in losses.items():
        commit_step(folder, step, loss)
    pruned = prune(folder, read_view(folder), 2, [CheckpointName(60, 1)], FreeLease(folder))
    assert [name.step for name in pruned] == [20, 100]
    assert committed_steps(folder) == [120, 80, 60, 40]


def test_a_checkpoint_of_a_newer_format_does_not_keep_others_from_being_pruned(
    folder: Store,
) -> None:
    newer, _, last = (commit_step(folder, step) for step in (20, 40, 60))
    content = read_manifest(folder, newer).model_dump() | {"format_version": 99}
    folder.put(newer.key(MANIFEST), [json.dumps(content).encode()])
    assert prune(folder, read_view(folder), 0, [last], FreeLease(folder)) == [CheckpointName(40, 1)]


def start(store: Store, scratch: Path) -> None:
    """What a start does about the checkpoints that it finds."""
    lease = FreeLease(store)
    clean_up(store, read_view(store), 2, lease)
    found = newest_valid(store, read_view(store), scratch)
    assert found is not None
    for name, reason in found.damaged:
        quarantine(store, name, reason, lease)


def leave_two_damaged(store: Store) -> list[CheckpointName]:
    good, *bad = [commit_step(store, step) for step in (20, 40, 60)]
    for name in bad:
        store.put(name.key("state.json"), [b"[]"])
    return [good, *bad]


def test_killed_anywhere_in_a_quarantine_the_next_start_ends_it_with_every_file_and_the_reason(
    folders: Iterator[Store], tmp_path: Path
) -> None:
    moves = 2 * (len(FILES) + 1)
    for dies_at in range(1, 3 * moves + 2 * 2 + 1):
        store = next(folders)
        good, *bad = leave_two_damaged(store)
        with pytest.raises(Died):
            start(MortalStore(store, dies_at), tmp_path)  # type: ignore[arg-type]
        start(store, tmp_path)
        assert [stored.name for stored in read_view(store).checkpoints] == [good]
        for name in bad:
            assert_whole_in_quarantine(store, name)
    store = next(folders)
    leave_two_damaged(store)
    start(MortalStore(store, dies_at + 1), tmp_path)  # type: ignore[arg-type]


def assert_whole_in_quarantine(store: Store, name: CheckpointName) -> None:
    place = f"quarantine/{name}/"
    kept = {info.key.removeprefix(place): store.get(info.key)[0] for info in store.list(place)}
    reason = json.loads(kept.pop("reason.json"))
    assert reason["checkpoint"] == str(name)
    assert reason["reason"] == f"{name.key('state.json')} {REASON} in the manifest"
    assert json.loads(kept.pop(MANIFEST))["step"] == name.step
    assert kept == {"model.safetensors": b"weightsmore", "state.json": b"[]"}


def test_a_start_that_is_killed_while_it_sets_a_late_commit_aside_is_made_up_for(
    folders: Iterator[Store], tmp_path: Path
) -> None:
    for dies_at in range(1, 2 + 3 * (len(FILES) + 1) + 2 + 1):
        store = next(folders)
        ours = commit_step(store, 10)
        go_on_from(store, 10, epoch=2)
        late = commit_step(store, 30)
        with pytest.raises(Died):
            start(MortalStore(store, dies_at), tmp_path)  # type: ignore[arg-type]
        start(store, tmp_path)
        assert [stored.name for stored in read_view(store).checkpoints] == [ours]
        kept = [info.key.rpartition("/")[2] for info in store.list(f"quarantine/{late}")]
        assert set(kept) == {*FILES, MANIFEST, "reason.json"}
        assert store.get(LATEST)[0] == f"{ours}\n".encode()


def test_a_late_commit_that_stands_alone_leaves_a_pointer_that_names_nothing(
    store: Store, tmp_path: Path
) -> None:
    go_on_from(store, 0, epoch=2)
    commit_step(store, 30)
    clean_up(store, read_view(store), 3, FreeLease(store))
    assert store.get(LATEST)[0] == b"\n"
    assert newest_valid(store, read_view(store), tmp_path) is None


def cleaning(store: Store, lease: FreeLease) -> None:
    clean_up(store, read_view(store), 2, lease)


def setting_aside(store: Store, lease: FreeLease) -> None:
    quarantine(store, CheckpointName(10, 1), REASON, lease)


def pruning(store: Store, lease: FreeLease) -> None:
    prune(store, read_view(store), 0, [], lease)


@pytest.mark.parametrize(
    ("work", "things"),
    # Cleaning: LATEST, then reason and files of the late one, the rest of another, two removals.
    [(cleaning, 1 + 1 + len(FILES) + 1 + 1 + 2), (setting_aside, 1 + len(FILES) + 1), (pruning, 2)],
)
def test_who_has_lost_the_run_moves_and_deletes_nothing_more(
    work: Callable[[Store, FreeLease], None], things: int, folders: Iterator[Store]
) -> None:
    """The lease is looked at before each thing, so it does not matter how far the work has come."""
    for looks in count(1):
        store = next(folders)
        for step in (4, 6, 10):
            commit_step(store, step)
        go_on_from(store, 10, epoch=2)
        commit_step(store, 30)
        store.put(CheckpointName(14, 1).key("model.safetensors"), [b"cut short"])
        store.put(CheckpointName(16, 1).key("model.safetensors"), [b"the rest"])
        store.put(f"quarantine/{CheckpointName(16, 1)}/reason.json", [b"{}"])
        leave_half_written(store, CheckpointName(12, 1).key("model.safetensors"))
        before, lease = everything(store), FadingLease(store, looks)
        try:
            work(store, lease)
        except Fenced:
            assert everything(store) == lease.then
            assert looks > 1 or lease.then == before
        else:
            break
    assert looks - 1 == things


# moto dates every upload to 2010.
NOTHING_IS_STALE = StoreLimits(stale_upload=100 * 365 * 86_400)
ALL_IS_STALE = StoreLimits(stale_upload=-1e9, stale_file_elsewhere=-1e9)


@pytest.mark.parametrize("store_limits", [NOTHING_IS_STALE], ids=["patient"])
def test_what_attempts_before_left_half_written_goes_at_once_and_nothing_else(
    store: Store,
) -> None:
    kept = [f"checkpoints/{CheckpointName(20, epoch)}" for epoch in (2, 3)]
    kept += ["logs", f"elsewhere/checkpoints/{CheckpointName(20, 1)}"]
    gone = [f"{place}/{CheckpointName(40, 1)}" for place in ("checkpoints", "quarantine")]
    for folder in kept + gone:
        leave_half_written(store, f"{folder}/large")
    clean_up(store, read_view(store), 2, FreeLease(store))
    assert sorted(half.folder for half in store.half_written()) == sorted(kept)


@pytest.mark.parametrize("store_limits", [ALL_IS_STALE], ids=["impatient"])
def test_no_age_makes_a_half_written_file_of_a_live_attempt_go(store: Store) -> None:
    live = f"checkpoints/{CheckpointName(20, 3)}"
    for folder in (live, "logs"):
        leave_half_written(store, f"{folder}/large")
    assert all(half.stale for half in store.half_written())
    clean_up(store, read_view(store), 2, FreeLease(store))
    assert [half.folder for half in store.half_written()] == [live]


def test_quarantine_keeps_what_lies_deeper_in_the_folder_apart(folder: Store) -> None:
    name = commit_step(folder, 20)
    folder.put(name.key("onnx/manifest.json"), [b"of another tool"])
    quarantine(folder, name, REASON, FreeLease(folder))
    assert folder.get(name.quarantine_key("onnx/manifest.json"))[0] == b"of another tool"
    assert json.loads(folder.get(name.quarantine_key(MANIFEST))[0])["step"] == 20


@pytest.mark.parametrize("store_limits", [ALL_IS_STALE], ids=["impatient"])
def test_what_others_upload_beside_a_run_is_left_alone_at_any_age(store: Store) -> None:
    others = ["backups/all.tar", "checkpoints/mine/x", f"old/checkpoints/{CheckpointName(2, 1)}/x"]
    for key in (*others, "logs/metrics.jsonl"):
        leave_half_written(store, key)
    clean_up(store, read_view(store), 2, FreeLease(store))
    left = [half.folder for half in store.half_written()]
    assert sorted(left) == sorted(key.rpartition("/")[0] for key in others)
