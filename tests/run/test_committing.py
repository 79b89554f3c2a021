"""The order of a commit, and what a process may still do that has lost the run."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from app.errors import Fenced, Unavailable
from app.run.checkpoints import read_latest
from app.run.committing import commit
from app.run.fetching import newest_valid
from app.run.layout import LATEST, MANIFEST, CheckpointName
from app.run.lease import Lease
from app.run.view import read_view
from app.stores.contract import Data, Store
from tests.support.fake_time import FakeTime
from tests.support.stored_run import FILES, FreeLease, committed_steps, go_on_from


class LostLease(FreeLease):
    def check(self) -> None:
        raise Fenced("held by another")


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


def test_without_the_lease_no_manifest_is_written(folder: Store) -> None:
    with pytest.raises(Fenced):
        commit(folder, CheckpointName(20, 1), FILES, 1.0, LostLease(folder))
    assert committed_steps(folder) == []


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
    """Each round, the successor starts before another operation of the commit, on the same run."""
    if not store.conditional_writes:
        pytest.skip("this server ignores conditions: nothing keeps two writers apart")
    time, epochs = FakeTime(), count(1)

    def attempt(view: Store) -> tuple[Lease, CheckpointName]:
        """The lease of the next attempt, and the checkpoint that it goes on from."""
        lease = Lease(view, 10, f"attempt {next(epochs)}", time.clock)
        lease.acquire(0, lambda line: None, lambda: False)
        found = newest_valid(store, read_view(store), tmp_path)
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
            assert seen in ([second], [])  # paused after the last look at the lease, or not at all
        lease.release()
        ends = seen[-1] if seen else second
        assert read_latest(store) in ((str(ends),) if commits else (str(first), str(ends)))
        if not seen:
            break
    assert before > len(FILES) + 5  # the sizes, two looks at the lease, manifest, LATEST


def test_a_pointer_that_is_refused_costs_no_commit(
    folder: Store, caplog: pytest.LogCaptureFixture
) -> None:
    class Refused(FreeLease):
        def put(self, key: str, content: bytes) -> None:
            raise Unavailable(f"{key} answers 412 for ever")

    commit(folder, CheckpointName(20, 1), FILES, 1.0, Refused(folder))
    assert committed_steps(folder) == [20]
    assert "LATEST does not name step-0000000020-e000001 yet" in caplog.text
