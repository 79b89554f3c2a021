"""waiting.json: a start that takes long says so, and leaves nothing behind."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import AccessDenied
from app.run.layout import WAITING
from app.run.waiting import WaitingNote, read_waiting
from app.stores.contract import Data, Store
from app.stores.opening import open_store


class Announced:
    """A store that says when something was written to it."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.written = threading.Event()
        put: Callable[[str, Data], None] = store.put

        def told(key: str, data: Data) -> None:
            put(key, data)
            self.written.set()

        monkeypatch.setattr(store, "put", told)


def test_it_says_what_the_start_is_doing_until_it_is_closed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced = Announced(store, monkeypatch)
    note = WaitingNote(store, "host:1:abc", "preparing data", 30.0, first_after=0.0).start()
    assert announced.written.wait(30)
    told = read_waiting(store)
    assert told is not None and (told.holder, told.doing) == ("host:1:abc", "preparing data")
    assert told.every == 10.0 and told.at >= told.since
    note.close()
    assert read_waiting(store) is None


def test_a_quick_start_writes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    announced = Announced(store, monkeypatch)
    WaitingNote(store, "host:1:abc", "preparing data", 30.0, first_after=600.0).start().close()
    assert not announced.written.is_set()


def test_what_another_start_has_written_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced = Announced(store, monkeypatch)
    note = WaitingNote(store, "host:1:abc", "preparing data", 30.0, first_after=0.0).start()
    assert announced.written.wait(30)
    theirs = store.get(WAITING)[0].replace(b"host:1:abc", b"host:2:def")
    store.put(WAITING, [theirs])
    note.close()
    assert store.get(WAITING)[0] == theirs


def test_a_store_that_refuses_stops_nothing_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, asked = open_store(f"file://{tmp_path}", "run"), threading.Event()

    def refuse(*_: object) -> None:
        asked.set()
        raise AccessDenied("no")

    monkeypatch.setattr(store, "put", refuse)
    note = WaitingNote(store, "host:1:abc", "preparing data", 30.0, first_after=0.0).start()
    assert asked.wait(30)
    note.close()
    assert [record.getMessage() for record in caplog.records] == [
        "what this start is doing is not shown: no"
    ]
