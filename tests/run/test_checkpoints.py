"""Commit order, verification, fallback, retention."""

import errno
import json
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from app.errors import Damaged, Fenced, IncompatibleRun, NotFound, Unavailable
from app.run.checkpoints import (
    LATEST,
    MANIFEST,
    CheckpointName,
    commit,
    fetch,
    find_checkpoint,
    newest_valid,
    read_latest,
    read_manifest,
    stored_checkpoints,
)
from app.run.lease import Lease
from app.run.retention import prune, remove_unfinished
from app.stores.contract import Data, Store
from app.stores.opening import open_store
from tests.run.test_lease import FakeTime
from tests.support.interposed import Answer, Interposed
from tests.support.unreadable import make_unreadable

FILES: dict[str, Data] = {
    "model.safetensors": [b"weights", memoryview(b"more")],
    "state.json": [b"{}"],
}


class FreeLease:
    """A lease that is always ours."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def check(self) -> None: ...

    def put(self, key: str, content: bytes) -> None:
        self.check()
        self._store.put(key, [content])


class LostLease(FreeLease):
    def check(self) -> None:
        raise Fenced("held by another")


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}", "run")


def commit_step(
    store: Store, step: int, loss: float | None = None, epoch: int = 1
) -> CheckpointName:
    name = CheckpointName(step, epoch)
    commit(store, name, FILES, loss if loss is not None else 10.0 - step / 100, FreeLease(store))
    return name


def committed_steps(store: Store) -> list[int]:
    return [stored.name.step for stored in stored_checkpoints(store) if stored.committed]


class Recorder:
    """Notes the order of writes of the store that it wraps."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.written: list[str] = []

    def put(self, key: str, data: Data) -> None:
        self.written.append(key)
        self._store.put(key, data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


def test_data_goes_first_then_the_manifest_then_the_pointer(folder: Store) -> None:
    recorder = Recorder(folder)
    name = CheckpointName(20, 3)
    commit(recorder, name, FILES, 1.0, FreeLease(recorder))  # type: ignore[arg-type]
    assert set(recorder.written[:-2]) == {name.key(file) for file in FILES}
    assert recorder.written[-2:] == [name.key(MANIFEST), LATEST]


def test_a_committed_checkpoint_is_read_back_and_verified(folder: Store, tmp_path: Path) -> None:
    name = commit_step(folder, 20)
    directory = fetch(folder, name, tmp_path)
    assert (directory / "model.safetensors").read_bytes() == b"weightsmore"
    assert read_manifest(folder, name).train_loss == pytest.approx(9.8)


def test_a_disk_here_that_fills_up_under_a_download_is_unavailable_and_no_damage(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"s3://{bucket}", "run")
    commit_step(store, 20)

    def full(*paths: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("s3transfer.utils.rename_file", full)
    with pytest.raises(Unavailable, match=f"^the download to {tmp_path}/.* is full"):
        newest_valid(store, tmp_path)


def test_without_the_lease_no_manifest_is_written(folder: Store) -> None:
    with pytest.raises(Fenced):
        commit(folder, CheckpointName(20, 1), FILES, 1.0, LostLease(folder))
    assert committed_steps(folder) == []


def test_checkpoints_order_by_step_then_epoch(folder: Store, tmp_path: Path) -> None:
    for step, epoch in ((20, 2), (40, 1), (40, 2), (9, 9)):
        commit_step(folder, step, epoch=epoch)
    names = [str(stored.name) for stored in stored_checkpoints(folder)]
    assert names[:2] == ["step-0000000040-e000002", "step-0000000040-e000001"]
    found = newest_valid(folder, tmp_path)
    assert found is not None and found.name == CheckpointName(40, 2)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [_flip, _truncate, _empty, Path.unlink])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_newest_checkpoint_gives_way_to_the_next(
    harm: Callable[[Path], None], file: str, folder: Store, tmp_path: Path
) -> None:
    good, bad = commit_step(folder, 20), commit_step(folder, 40)
    harm(tmp_path / "run" / bad.key(file))
    found = newest_valid(folder, tmp_path / "scratch")
    assert found is not None and found.name == good
    assert [name for name, _ in found.damaged] == [bad]
    assert file in found.damaged[0][1]


@pytest.mark.parametrize("file", ["model.safetensors", MANIFEST])
def test_a_bit_that_flips_in_a_download_costs_no_checkpoint(
    bucket: str, s3_answers: Interposed, tmp_path: Path, file: str
) -> None:
    store = open_store(f"s3://{bucket}", "run")
    commit_step(store, 20)
    name = commit_step(store, 40)
    content, _ = store.get(name.key(file))
    flipped = bytes([content[0] ^ 1]) + content[1:]
    answers = [(200, flipped.decode())]

    def answering(environ: dict[str, Any]) -> Answer | None:
        wanted = environ["REQUEST_METHOD"] == "GET" and environ["PATH_INFO"].endswith(file)
        return answers.pop() if wanted and answers else None

    s3_answers.answering = answering
    found = newest_valid(store, tmp_path)
    assert found is not None and not answers
    assert (found.name, found.damaged) == (name, [])


@pytest.mark.parametrize(
    "manifest",
    [b"", b"{", b"null", b'{"step": 40}', b"\xff\xfe"],
)
def test_a_damaged_manifest_makes_the_checkpoint_damaged(
    manifest: bytes, folder: Store, tmp_path: Path
) -> None:
    good, bad = commit_step(folder, 20), commit_step(folder, 40)
    folder.put(bad.key(MANIFEST), [manifest])
    found = newest_valid(folder, tmp_path / "scratch")
    assert found is not None and found.name == good and len(found.damaged) == 1


def test_a_manifest_cannot_name_a_file_elsewhere(folder: Store, tmp_path: Path) -> None:
    name = commit_step(folder, 20)
    manifest = read_manifest(folder, name)
    files = {**manifest.files, "../../run.json": manifest.files["state.json"]}
    changed = manifest.model_copy(update={"files": files})
    folder.put(name.key(MANIFEST), [changed.model_dump_json().encode()])
    with pytest.raises(Damaged, match="unusable file"):
        fetch(folder, name, tmp_path)


def test_a_manifest_of_a_newer_format_is_not_called_damaged(folder: Store, tmp_path: Path) -> None:
    name = commit_step(folder, 20)
    newer = read_manifest(folder, name).model_dump() | {"format_version": 99}
    for entry in newer["files"].values():
        entry["crc"] = "of a later day"
    folder.put(name.key(MANIFEST), [json.dumps(newer).encode()])
    with pytest.raises(IncompatibleRun, match="format 99"):
        newest_valid(folder, tmp_path)


def test_a_checkpoint_of_a_newer_format_does_not_keep_others_from_being_pruned(
    folder: Store,
) -> None:
    newer, _, last = (commit_step(folder, step) for step in (20, 40, 60))
    content = read_manifest(folder, newer).model_dump() | {"format_version": 99}
    folder.put(newer.key(MANIFEST), [json.dumps(content).encode()])
    assert prune(folder, 0, [last], FreeLease(folder)) == [CheckpointName(40, 1)]


def test_with_no_valid_checkpoint_left_the_job_explains_and_changes_nothing(
    folder: Store, tmp_path: Path
) -> None:
    name = commit_step(folder, 20)
    _flip(tmp_path / "run" / name.key("state.json"))
    with pytest.raises(Damaged, match="no valid checkpoint is left"):
        newest_valid(folder, tmp_path / "scratch")
    assert committed_steps(folder) == [20]


def test_an_empty_store_has_no_checkpoint(folder: Store, tmp_path: Path) -> None:
    assert newest_valid(folder, tmp_path) is None


def test_a_volume_that_cannot_be_read_is_named_and_is_not_called_damaged(
    folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run" / commit_step(folder, 20).key("model.safetensors")
    make_unreadable(monkeypatch, path, errno.EIO)
    with pytest.raises(Unavailable, match=rf"{path} does not work now \(Input/output error\)"):
        newest_valid(folder, tmp_path / "scratch")


def test_a_checkpoint_is_found_by_step_name_or_latest(folder: Store) -> None:
    first, second = commit_step(folder, 20), commit_step(folder, 40)
    assert find_checkpoint(folder, "20") == find_checkpoint(folder, str(first)) == first
    assert find_checkpoint(folder, "latest") == second
    with pytest.raises(NotFound, match="there are steps 40, 20"):
        find_checkpoint(folder, "30")


def test_a_store_that_loses_what_was_written_is_tried_again_not_called_damaged(
    folder: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = type(folder).put

    def forgetful(self: Store, key: str, data: Data) -> None:
        original(self, key, [b"short"] if key.endswith("state.json") else data)

    monkeypatch.setattr(type(folder), "put", forgetful)
    with pytest.raises(Unavailable, match="did not keep"):
        commit(
            folder, CheckpointName(20, 1), {**FILES, "state.json": [b"{1}"]}, 1.0, FreeLease(folder)
        )
    assert committed_steps(folder) == []


def test_a_checkpoint_that_lost_its_manifest_is_damaged_not_unfinished(
    folder: Store, tmp_path: Path
) -> None:
    good, bad = commit_step(folder, 20), commit_step(folder, 40)
    folder.delete([bad.key(MANIFEST)])
    assert remove_unfinished(folder, 2, FreeLease(folder)) == []
    found = newest_valid(folder, tmp_path / "scratch")
    assert found is not None and found.name == good
    assert [name for name, _ in found.damaged] == [bad]


def go_on_from(store: Store, step: int, epoch: int) -> None:
    """As an attempt of this epoch does before it commits anything."""
    store.put(f"attempts/e{epoch:06d}-from-{step:010d}.json", [b"{}"])


def test_a_zombies_late_commit_is_no_checkpoint_of_the_run(folder: Store, tmp_path: Path) -> None:
    commit_step(folder, 10)
    go_on_from(folder, 10, epoch=2)
    late = commit_step(folder, 30)
    ours = commit_step(folder, 20, epoch=2)
    assert committed_steps(folder) == [20, 10]
    assert find_checkpoint(folder, "latest") == ours
    found = newest_valid(folder, tmp_path / "scratch")
    assert found is not None and (found.name, list(found.damaged)) == (ours, [])
    assert prune(folder, 0, [], FreeLease(folder)) == [CheckpointName(10, 1)]
    assert read_manifest(folder, late).step == 30


def test_fetching_and_verifying_a_checkpoint_give_signs_of_life(
    store: Store, tmp_path: Path
) -> None:
    commit_step(store, 2)
    seen: list[None] = []
    assert newest_valid(store, tmp_path / "scratch", alive=lambda: seen.append(None))
    verified = len(FILES)
    fetched = 0 if store.uri.startswith("file:") else len(FILES)
    assert len(seen) == verified + fetched


class Paused:
    """A store whose user is paused before operation number `at`, while `meanwhile` happens."""

    def __init__(self, store: Store, meanwhile: Callable[[], None]) -> None:
        self._store, self._meanwhile = store, meanwhile
        self.at, self.operations = 0, 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def operation(*arguments: Any, **named: Any) -> Any:
            self.operations += 1
            if self.operations == self.at:
                self._meanwhile()
            return method(*arguments, **named)

        return operation if callable(method) else method


@pytest.mark.parametrize("commits", [False, True], ids=["starts", "starts and commits"])
def test_wherever_a_commit_is_paused_the_pointer_names_nothing_that_a_successor_has_not_seen(
    commits: bool, store: Store, tmp_path: Path
) -> None:
    """The successor comes before each operation of a commit in turn, on one and the same run."""
    if not store.conditional_writes:
        pytest.skip("this server ignores conditions: nothing keeps two writers apart")
    time, epochs = FakeTime(), count(1)

    def attempt(view: Store) -> tuple[Lease, CheckpointName]:
        """Its lease, and what it goes on from."""
        lease = Lease(view, 10, f"attempt {next(epochs)}", time.clock)
        lease.acquire(0, lambda line: None, lambda: False)
        found = newest_valid(store, tmp_path)
        name = found.name if found else CheckpointName(0, 0)
        go_on_from(store, name.step, lease.epoch)
        return lease, name

    def take_over() -> None:
        lease, name = attempt(store)
        seen.append(name)
        if commits:
            seen.append(CheckpointName(name.step + 1, lease.epoch))
            commit(store, seen[-1], FILES, 1.0, lease)
        lease.release()

    for before in count(1):
        seen: list[CheckpointName] = []
        paused = Paused(store, take_over)
        lease, name = attempt(paused)
        first, second = (CheckpointName(name.step + step, lease.epoch) for step in (2, 4))
        commit(store, first, FILES, 1.0, lease)
        paused.at = paused.operations + before
        try:
            commit(paused, second, FILES, 1.0, lease)
        except Fenced:
            assert seen
        else:
            assert seen in ([second], [])  # paused behind the last look, or not at all
        lease.release()
        ends = seen[-1] if seen else second
        assert read_latest(store) in ((str(ends),) if commits else (str(first), str(ends)))
        if not seen:
            break
    assert before > len(FILES) + 5  # sizes, look, manifest, look, pointer
