"""Saving behind the loop: one in flight, one waiting, retried until GIVE_UP_SECONDS."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from app.checkpoints import stored_checkpoints
from app.errors import AccessDenied, AppError, Fenced, Unavailable
from app.saver import CheckpointSaver, SaveRequest
from app.sections import CheckpointSettings
from app.state import Snapshot
from app.stores import Data, Store, open_store
from tests.test_state import progress


class StubLease:
    """Stands in for a lease: epoch 1, and lost when a test says so."""

    epoch = 1

    def __init__(self) -> None:
        self.is_lost = False

    def check(self) -> None:
        if self.is_lost:
            raise Fenced("held by another process")


class FlakyStore:
    """A store whose writes fail with the given errors first, and wait at a gate."""

    def __init__(self, store: Store, failures: list[AppError]) -> None:
        self._store, self.failures = store, failures
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def put(self, key: str, data: Data) -> None:
        self.entered.set()
        assert self.gate.wait(30)
        if self.failures:
            raise self.failures.pop(0)
        self._store.put(key, data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


def request(step: int) -> SaveRequest:
    snapshot = Snapshot(progress(step), {"w": torch.ones(3)}, {"exp_avg.w": torch.ones(3)})
    return SaveRequest(snapshot, {"logs/metrics.jsonl": [b"{}\n"]})


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}", "run")


class Bench:
    """A saver over a flaky store."""

    def __init__(self, folder: Store, failures: list[AppError], give_up: float = 60) -> None:
        self.store, self.lease = FlakyStore(folder, failures), StubLease()
        self.saver = CheckpointSaver(
            self.store,  # type: ignore[arg-type]
            self.lease,  # type: ignore[arg-type]
            CheckpointSettings(give_up_seconds=give_up),
            extra_files={"config.json": b"{}"},
            first_pause=0.01,
        )

    def steps(self) -> list[int]:
        store: Store = self.store  # type: ignore[assignment]
        return [stored.name.step for stored in stored_checkpoints(store) if stored.committed]


@pytest.fixture
def benches() -> Iterator[list[Bench]]:
    made: list[Bench] = []
    yield made
    for bench in made:
        bench.store.gate.set()
        bench.saver.close()


def test_a_submitted_snapshot_is_committed(folder: Store, benches: list[Bench]) -> None:
    bench = Bench(folder, [])
    benches.append(bench)
    bench.saver.submit(request(20))
    assert bench.saver.wait(30)
    assert bench.steps() == [20] and bench.saver.committed_step == 20


def test_the_loop_does_not_wait_and_the_newest_snapshot_replaces_the_waiting_one(
    folder: Store, benches: list[Bench]
) -> None:
    bench = Bench(folder, [])
    benches.append(bench)
    bench.store.gate.clear()
    bench.saver.submit(request(20))
    assert bench.store.entered.wait(30)
    bench.saver.submit(request(40))
    bench.saver.submit(request(60))
    assert not bench.saver.wait(0)
    bench.store.gate.set()
    assert bench.saver.wait(30)
    assert bench.steps() == [60, 20]


def test_a_store_that_comes_back_loses_nothing(
    folder: Store, benches: list[Bench], caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(folder, [Unavailable("503"), Unavailable("reset")])
    benches.append(bench)
    bench.saver.submit(request(20))
    assert bench.saver.wait(30)
    assert bench.steps() == [20]
    assert caplog.text.count("saving step 20 failed") == 2


def test_a_store_that_stays_away_ends_the_job_with_75(folder: Store, benches: list[Bench]) -> None:
    bench = Bench(folder, [Unavailable("503")] * 1000, give_up=0.05)
    benches.append(bench)
    bench.saver.submit(request(20))
    with pytest.raises(Unavailable, match="GIVE_UP_SECONDS"):
        bench.saver.wait(30)
    with pytest.raises(Unavailable):
        bench.saver.submit(request(40))


@pytest.mark.parametrize("error", [AccessDenied("403"), RuntimeError("a bug")])
def test_what_waiting_cannot_cure_is_raised_at_once(
    error: Exception, folder: Store, benches: list[Bench]
) -> None:
    bench = Bench(folder, [error])  # type: ignore[list-item]
    benches.append(bench)
    bench.saver.submit(request(20))
    with pytest.raises(type(error), match=str(error)):
        bench.saver.wait(30)


def test_a_fenced_process_writes_nothing(folder: Store, benches: list[Bench]) -> None:
    bench = Bench(folder, [])
    benches.append(bench)
    bench.lease.is_lost = True
    bench.saver.submit(request(20))
    with pytest.raises(Fenced):
        bench.saver.wait(30)
    assert list(folder.list("")) == []
