"""One object of a run that the store never serves hides nothing else of it."""

import json
from pathlib import Path

import pytest

from app.errors import Unserved
from app.observe.remembered import RememberedStore
from app.observe.report import page
from app.observe.reported_run import ReportedRun, read_run
from app.observe.rows import encode_row
from app.run.journal import AttemptJournal
from app.run.layout import (
    LATEST,
    LEASE,
    MANIFEST,
    METRICS_KEY,
    REASON,
    RECORD,
    SAMPLES_KEY,
    WAITING,
    CheckpointName,
)
from app.run.record import create_record
from app.stores.contract import ReadableStore, Store
from app.stores.opening import open_store
from tests.support.asked import Asked
from tests.support.rows import row
from tests.support.stored_run import IDENTITY, attempt_record, commit_step

SAMPLE = b'{"step": 2, "attempt": 1, "time": 1.0, "text": "Once upon"}\n'
OLDER, NEWER = CheckpointName(2, 1), CheckpointName(4, 1)
QUARANTINED = CheckpointName(1, 1).quarantine_key(REASON)


@pytest.fixture
def run(tmp_path: Path) -> Store:
    """A run that has one of each."""
    store = open_store(f"file://{tmp_path}", "run")
    create_record(store, "run", IDENTITY, 100)
    store.put(METRICS_KEY, [encode_row(row(1)), encode_row(row(2))])
    store.put(SAMPLES_KEY, [SAMPLE])
    lease = {"holder": "x", "epoch": 1, "renewal": 1, "ttl": 9, "expires_at": 9, "released": True}
    store.put(LEASE, [json.dumps(lease).encode()])
    waiting = {"holder": "y", "doing": "waiting", "since": 1, "at": 1, "every": 3}
    store.put(WAITING, [json.dumps(waiting).encode()])
    AttemptJournal(store, attempt_record()).begin()
    store.put(QUARANTINED, [b'{"reason": "cut"}'])
    for name in (OLDER, NEWER):
        commit_step(store, name.step)
    return store


def parts(run: ReportedRun) -> dict[str, object]:
    return {
        RECORD: run.record,
        LEASE: run.lease,
        WAITING: run.waiting,
        METRICS_KEY: len(run.rows),
        SAMPLES_KEY: len(run.samples),
        attempt_record().key: len(run.attempts),
        OLDER.key(MANIFEST): next(c.whole for c in run.checkpoints if c.name == OLDER),
        NEWER.key(MANIFEST): next(c.whole for c in run.checkpoints if c.name == NEWER),
        QUARANTINED: "cut" in run.checkpoints[-1].state,
        LATEST: len(run.checkpoints),
    }


def unserved(store: Store, gone: str) -> ReadableStore:
    def failing(key: str) -> None:
        if key == gone:
            raise Unserved(f"{key}: the server answers 500")

    return Asked(store, failing)


@pytest.mark.parametrize(
    "gone",
    [
        RECORD,
        LEASE,
        WAITING,
        METRICS_KEY,
        SAMPLES_KEY,
        LATEST,
        OLDER.key(MANIFEST),
        QUARANTINED,
        attempt_record().key,
    ],
)
def test_one_object_that_is_never_served_hides_nothing_else(run: Store, gone: str) -> None:
    whole, remembered = parts(read_run(run)), RememberedStore(unserved(run, gone))
    remembered.look()
    for found in (read_run(unserved(run, gone)), read_run(remembered)):
        lost = {key for key, part in parts(found).items() if part != whole[key]}
        assert lost == ({gone} - {LATEST})
        said = page(found)
        if gone == QUARANTINED:
            assert "its reason cannot be read" in said
        elif gone == attempt_record().key:
            assert "1 record of attempts cannot be read" in said
        else:
            assert "the server answers 500" in said
