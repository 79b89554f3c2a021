"""Saving behind the loop: one in flight, one waiting, retried until GIVE_UP_SECONDS."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from app.errors import (
    AccessDenied,
    AppError,
    ConfigError,
    Damaged,
    Fenced,
    NoBucket,
    NoCredentials,
    NotFound,
    Unavailable,
)
from app.observe.rows import Beginning
from app.run.journal import AttemptJournal, AttemptRecord
from app.run.view import read_view
from app.settings.variables import CheckpointSettings
from app.state.snapshot import Snapshot
from app.stores.contract import Data, Store
from app.stores.opening import open_store
from app.training.saver import CheckpointSaver, SaveRequest
from tests.support.training_state import progress

RECORD = AttemptRecord(
    epoch=1,
    holder="test",
    trainer="torch",
    started_at="2026-01-01T00:00:00+00:00",
    resumed_from=None,
    start_step=0,
    step=0,
)


class StubLease:
    """Stands in for a lease: epoch 1, and lost when a test says so."""

    epoch = 1

    def __init__(self, store: "FlakyStore") -> None:
        self._store, self.is_lost = store, False

    def check(self) -> None:
        if self.is_lost:
            raise Fenced("held by another process")

    def put(self, key: str, content: bytes) -> None:
        self.check()
        self._store.put(key, [content])


class FlakyStore:
    """A store whose writes fail with the given errors first, and wait at a gate."""

    def __init__(self, store: Store, failures: list[AppError]) -> None:
        self._store, self.failures = store, failures
        self.gate = threading.Event()
        self.gate.set()
        self.entered, self.failed = threading.Event(), threading.Event()
        self.deletes = True
        self.refusal: AppError | None = None  # of each deletion
        self.full_at = ""  # the last part of a key that does not fit any more

    def put(self, key: str, data: Data) -> None:
        self.entered.set()
        assert self.gate.wait(30)
        if self.failures:
            self.failed.set()
            raise self.failures.pop(0)
        if self.full_at and key.endswith(self.full_at):
            raise Unavailable(f"{key}: no space left")
        self._store.put(key, data)

    def delete(self, keys: Sequence[str]) -> None:
        if self.refusal is not None:
            raise self.refusal
        self._store.delete(keys)

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


def request(step: int) -> SaveRequest:
    snapshot = Snapshot(progress(step), {"w": torch.ones(3)}, {"exp_avg.w": torch.ones(3)})
    return SaveRequest(snapshot, {"logs/metrics.jsonl": Beginning([b"{}\n"], 1)})


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}", "run")


class Bench:
    """A saver over a flaky store."""

    def __init__(
        self,
        folder: Store,
        failures: list[AppError],
        give_up: float = 60,
        keep_top: int = 5,
        first_pause: float = 0.01,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = FlakyStore(folder, failures)
        self.lease = StubLease(self.store)
        self.journal = AttemptJournal(folder, RECORD)
        self.saver = CheckpointSaver(
            self.store,  # type: ignore[arg-type]
            self.lease,  # type: ignore[arg-type]
            CheckpointSettings(give_up_seconds=give_up, keep_top=keep_top),
            extra_files={"config.json": b"{}"},
            journal=self.journal,
            first_pause=first_pause,
            now=now,
        )

    def steps(self) -> list[int]:
        store: Store = self.store  # type: ignore[assignment]
        return [stored.name.step for stored in read_view(store).checkpoints if stored.committed]


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
    assert bench.journal.record.failed_saves == 2 and bench.journal.record.commits == 1


def test_failed_tries_are_counted_until_the_next_commit(
    folder: Store, benches: list[Bench]
) -> None:
    bench = Bench(folder, [Unavailable("503"), AccessDenied("403")], first_pause=3600)
    benches.append(bench)
    store, saver = bench.store, bench.saver
    counts = []
    saver.submit(request(20))
    for step in (40, 60):
        assert store.failed.wait(30)
        store.failed.clear()
        store.gate.clear()
        store.entered.clear()
        saver.submit(request(step))
        assert store.entered.wait(30)
        counts.append((saver.saves_committed, saver.failed_saves))
        store.gate.set()
    assert saver.wait(30)
    assert counts == [(0, 1), (0, 2)]
    assert (saver.saves_committed, saver.failed_saves) == (1, 0)
    assert bench.journal.record.failed_saves == 2


def test_a_store_that_stays_away_ends_the_job_with_75(folder: Store, benches: list[Bench]) -> None:
    bench = Bench(folder, [Unavailable("503")] * 1000, give_up=0.05)
    benches.append(bench)
    bench.saver.submit(request(20))
    with pytest.raises(Unavailable, match="GIVE_UP_SECONDS"):
        bench.saver.wait(30)
    with pytest.raises(Unavailable):
        bench.saver.submit(request(40))


def test_a_full_volume_gets_back_what_the_saves_that_were_given_up_took_and_nothing_else(
    folder: Store, benches: list[Bench]
) -> None:
    bench = Bench(folder, [], give_up=0.05)
    benches.append(bench)
    bench.saver.submit(request(20))
    assert bench.saver.wait(30)
    bench.store.full_at = "optimizer.safetensors"
    bench.saver.submit(request(40))
    with pytest.raises(Unavailable, match="GIVE_UP_SECONDS"):
        bench.saver.wait(30)
    assert bench.steps() == [20]
    left = {info.key.split("/")[1] for info in folder.list("checkpoints")}
    assert left == {"step-0000000020-e000001"} and not folder.half_written()


def test_a_newer_snapshot_does_not_wait_for_the_pause_of_an_older_one(
    folder: Store, benches: list[Bench]
) -> None:
    bench = Bench(folder, [Unavailable("503")], first_pause=3600)
    benches.append(bench)
    bench.saver.submit(request(20))
    assert bench.store.failed.wait(30)
    bench.saver.submit(request(40))
    assert bench.saver.wait(30)
    assert bench.steps() == [40]


def test_access_that_vanishes_and_comes_back_loses_nothing(
    folder: Store, benches: list[Bench]
) -> None:
    bench = Bench(folder, [AccessDenied("403"), AccessDenied("403")])
    benches.append(bench)
    bench.saver.submit(request(20))
    assert bench.saver.wait(30)
    assert bench.steps() == [20]


def test_access_that_stays_denied_ends_the_job_with_77(folder: Store, benches: list[Bench]) -> None:
    bench = Bench(folder, [AccessDenied("403")] * 1000, give_up=0.05)
    benches.append(bench)
    bench.saver.submit(request(20))
    with pytest.raises(AccessDenied, match="GIVE_UP_SECONDS"):
        bench.saver.wait(30)


@pytest.mark.parametrize(
    "answer",
    [
        ConfigError("400 KMS.DisabledException"),
        NoBucket("restored just now"),
        NoCredentials("the role is gone"),
        Damaged("half an answer"),
        NotFound("a proxy"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_store_answers_that_worked_before_is_tried_again(
    folder: Store, benches: list[Bench], answer: AppError
) -> None:
    bench = Bench(folder, [answer, answer])
    benches.append(bench)
    bench.saver.submit(request(20))
    assert bench.saver.wait(30)
    assert bench.steps() == [20]


def test_an_answer_that_stays_ends_the_job_with_its_own_code(
    folder: Store, benches: list[Bench]
) -> None:
    bench = Bench(folder, [ConfigError("400")] * 1000, give_up=0.05)
    benches.append(bench)
    bench.saver.submit(request(20))
    with pytest.raises(ConfigError, match="GIVE_UP_SECONDS"):
        bench.saver.wait(30)


def test_pruning_that_is_refused_is_said_once_and_taken_up_when_it_is_allowed(
    folder: Store, benches: list[Bench], caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(folder, [], keep_top=0)
    benches.append(bench)
    for step, refusal in [
        (20, None),
        (40, AccessDenied("403")),
        (60, ConfigError("405")),
        (80, None),
    ]:
        bench.store.refusal = refusal
        bench.saver.submit(request(step))
        assert bench.saver.wait(30)
    assert caplog.text.count("old checkpoints could not be removed") == 1
    assert bench.steps() == [80]


def test_a_store_that_deletes_nothing_keeps_every_checkpoint_without_a_word(
    folder: Store, benches: list[Bench], caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(folder, [], keep_top=0)
    benches.append(bench)
    bench.store.deletes, bench.store.refusal = False, AccessDenied("403")
    for step in (20, 40):
        bench.saver.submit(request(step))
        assert bench.saver.wait(30)
    assert bench.steps() == [40, 20]
    assert "WARNING" not in caplog.text


def test_time_without_a_save_is_not_time_in_which_saving_fails(
    folder: Store, benches: list[Bench]
) -> None:
    passed = [0.0]
    bench = Bench(
        folder, [Unavailable("503")], give_up=60, now=lambda: time.monotonic() + passed[0]
    )
    benches.append(bench)
    passed[0] = 10_000
    bench.saver.submit(request(20))
    assert bench.saver.wait(30)
    assert bench.steps() == [20]


def test_a_bug_is_raised_at_once(folder: Store, benches: list[Bench]) -> None:
    bench = Bench(folder, [RuntimeError("a bug")])  # type: ignore[list-item]
    benches.append(bench)
    bench.saver.submit(request(20))
    with pytest.raises(RuntimeError, match="a bug"):
        bench.saver.wait(30)


def test_an_upload_that_was_given_up_is_removed_with_the_next_commit(
    folder: Store, benches: list[Bench]
) -> None:
    folder.put("checkpoints/step-0000000010-e000001/model.safetensors", [b"half"])
    folder.put("checkpoints/step-0000000010-e000002/model.safetensors", [b"another's"])
    bench = Bench(folder, [])
    benches.append(bench)
    bench.saver.submit(request(20))
    assert bench.saver.wait(30)
    folders = {info.key.split("/")[1] for info in folder.list("checkpoints/")}
    assert folders == {"step-0000000020-e000001", "step-0000000010-e000002"}


def test_a_fenced_process_writes_nothing(folder: Store, benches: list[Bench]) -> None:
    bench = Bench(folder, [])
    benches.append(bench)
    bench.lease.is_lost = True
    bench.saver.submit(request(20))
    with pytest.raises(Fenced):
        bench.saver.wait(30)
    assert list(folder.list("")) == []
