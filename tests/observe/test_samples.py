"""Samples: the newest are kept, as text, and what cannot be read is left out."""

import pytest

from app.errors import Damaged, Unserved
from app.observe.samples import SampleLog, read_samples, stored_samples
from app.run.layout import SAMPLES_KEY
from app.stores.contract import Store
from tests.support.asked import Asked


def stored(store: Store, log: SampleLog) -> list[tuple[int, str]]:
    for key, rows in log.objects().items():
        store.put(key, [rows.content()])
    return [(sample.step, sample.text) for sample in stored_samples(store)]


def test_samples_come_back_as_they_were(store: Store) -> None:
    log = SampleLog()
    assert log.objects() == {} and stored(store, log) == []
    log.add(5, 1, 1.0, 'a "quoted"\nline\u2028 and é\x00')
    assert stored(store, log) == [(5, 'a "quoted"\nline\u2028 and é\x00')]


def test_only_the_newest_are_kept_and_none_is_long(store: Store) -> None:
    log = SampleLog(most=3)
    for step in range(10):
        log.add(step, 1, 1.0, "x" * 100_000)
    assert [(step, len(text)) for step, text in stored(store, log)] == [
        (7, 4_000),
        (8, 4_000),
        (9, 4_000),
    ]


def test_earlier_samples_stay(store: Store) -> None:
    first = SampleLog()
    first.add(1, 1, 1.0, "one")
    stored(store, first)
    later = SampleLog(stored_samples(store))
    later.add(2, 2, 2.0, "two")
    assert stored(store, later) == [(1, "one"), (2, "two")]


def test_what_cannot_be_read_is_left_out(store: Store) -> None:
    good = b'{"step": 1, "attempt": 1, "time": 1.0, "text": "good"}\n'
    store.put(SAMPLES_KEY, [b"\xff\n[]\n", good, b'{"step": -1}\n'])
    assert [sample.text for sample in stored_samples(store)] == ["good"]
    store.put(SAMPLES_KEY, [b"x" * (2 << 20)])
    assert stored_samples(store) == []
    with pytest.raises(Damaged):
        read_samples(store)


def test_samples_that_the_store_never_serves_stop_no_start(store: Store) -> None:
    def failing(key: str) -> None:
        raise Unserved(f"{key}: 500")

    assert stored_samples(Asked(store, failing)) == []
