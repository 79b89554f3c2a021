"""The flight record lies beside the attempt, however long it is and whatever the store does."""

import threading
from pathlib import Path
from typing import Any

import pytest

from app.errors import Unavailable
from app.run.layout import AttemptName, flight_key, of_a_run
from app.run.view import read_view
from app.stores.local import LocalStore
from app.training.flight import keep_flight_record
from tests.support.stored_run import go_on_from


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (b'{"entries": []}', b'{"entries": []}'),
        (bytes(range(256)) * 4, (bytes(range(256)) * 4)[-100:]),
        (b"\xff" * 100, b"\xff" * 100),
    ],
    ids=["a short one", "a long one of any bytes", "one that just fits"],
)
def test_a_record_is_bounded_and_stored_beside_the_attempt(
    content: bytes, kept: bytes, tmp_path: Path
) -> None:
    store = LocalStore(tmp_path)
    go_on_from(store, 20, 3)
    keep_flight_record(lambda: store, 3, 1, lambda: content, most_bytes=100)
    key = flight_key(3, 1)
    assert store.get(key)[0] == kept
    assert key.rpartition("/")[0] == AttemptName(3, 20).key.rpartition("/")[0]
    assert of_a_run(key)
    assert [attempt.epoch for attempt in read_view(store).attempts] == [3], "it is no attempt"


def test_no_record_leaves_nothing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    keep_flight_record(lambda: store, 3, 1, lambda: b"")
    assert list(store.list("")) == []


class BadStore:
    """A store that refuses a record, or never answers."""

    uri = "s3://bucket/run"

    def __init__(self, answers: bool) -> None:
        self._answers = answers

    def put(self, key: str, data: object) -> None:
        if not self._answers:
            threading.Event().wait()
        raise Unavailable("503")


@pytest.mark.parametrize(("answers", "why"), [(True, ": 503"), (False, " within 0.1 s")])
def test_a_store_that_does_not_take_it_ends_nothing(
    answers: bool, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    store: Any = BadStore(answers)
    keep_flight_record(lambda: store, 3, 1, lambda: b"x", patience=0.1)
    assert f"the flight record of rank 1 was not stored{why}" in caplog.text
