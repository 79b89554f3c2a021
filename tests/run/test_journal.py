"""The record of attempts, and the fence that its names are."""

from pathlib import Path

import pytest

from app.errors import Unavailable
from app.run.journal import (
    AttemptJournal,
    AttemptRecord,
    Fences,
    attempt_table,
    fences,
    read_attempts,
    seconds_of_this_process,
    summary,
)
from app.stores.contract import Store
from app.stores.opening import open_store


def record(epoch: int = 1, start_step: int = 0) -> AttemptRecord:
    return AttemptRecord(
        epoch=epoch,
        holder="host:1:abc",
        trainer="torch",
        started_at="2026-01-01T00:00:00+00:00",
        resumed_from=None,
        start_step=start_step,
        step=start_step,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}", "run")


@pytest.mark.parametrize(
    ("step", "epoch", "late"),
    [
        (14, 1, False),  # what attempt 2 went on from
        (15, 1, True),  # attempt 1 woke up after that
        (20, 2, False),
        (25, 2, True),
        (99, 3, False),  # the newest attempt's own
    ],
)
def test_a_checkpoint_beyond_a_later_start_is_late(step: int, epoch: int, late: bool) -> None:
    assert Fences([(1, 0), (2, 14), (3, 20)]).late(step, epoch) is late


def test_an_attempt_that_fell_back_makes_everything_after_its_start_late() -> None:
    assert Fences([(1, 0), (2, 50), (3, 10)]).late(50, 1)
    assert not Fences([(1, 0), (2, 50), (3, 10)]).late(10, 2)


def test_the_names_alone_are_the_fence(store: Store) -> None:
    AttemptJournal(store, record(1, 0)).begin()
    AttemptJournal(store, record(2, 14)).begin()
    store.put("attempts/notes.txt", [b"a person was here"])
    assert list(fences(store).starts) == [(1, 0), (2, 14)]


def test_a_journal_is_read_back_with_its_end(folder: Store) -> None:
    journal = AttemptJournal(folder, record(3, 20))
    journal.begin()
    journal.note(step=32, seconds=60.0, seconds_to_first_step=4.25)
    journal.saved(0.5)
    journal.saved(0.25)
    journal.committed(3.0)
    journal.committed(2.0)
    journal.end("target reached")
    (read,) = read_attempts(folder, newest=10)
    assert (read.steps, read.saves, read.stall_seconds) == (12, 2, 0.75)
    assert (read.longest_upload_lag, read.ended) == (3.0, "target reached")
    assert (read.commits, read.failed_saves) == (2, 0)
    assert summary(read) == (
        "attempt 3: 12 steps in 1:00; 2 saves held training up for 0.75 s (1.25 %), the slowest "
        "was in the store after 3.0 s"
    )


def test_tries_to_save_that_failed_are_in_the_record_the_summary_and_the_table(
    folder: Store,
) -> None:
    journal = AttemptJournal(folder, record())
    journal.begin()
    journal.save_failed()
    journal.save_failed()
    journal.end("exit 75")
    (read,) = read_attempts(folder, newest=10)
    assert summary(read).endswith("; 2 tries to save failed")
    once = read.model_copy(update={"step": 1, "saves": 1, "commits": 1, "failed_saves": 1})
    assert summary(once) == (
        "attempt 1: 1 step in 0:00; 1 save held training up for 0.00 s (0.00 %), it was in the "
        "store after 0.0 s; 1 try to save failed"
    )
    assert "in the store after" not in summary(read), "nothing was"
    header, line = attempt_table([read])
    column = header.split().index("failed") + 1  # "1st step" is two words
    assert line.replace(" s ", " ").split()[column - 2] == "2"


def test_a_killed_attempt_leaves_the_words_of_its_last_checkpoint(folder: Store) -> None:
    journal = AttemptJournal(folder, record())
    journal.begin()
    journal.note(step=5)
    for key, content in journal.objects().items():
        folder.put(key, content)
    journal.note(step=9)
    (read,) = read_attempts(folder, newest=10)
    assert (read.step, read.ended) == (5, None)
    assert attempt_table([read])[1].endswith("no end recorded: killed, or still running")


def test_the_newest_attempts_are_shown_and_a_broken_one_is_said(
    folder: Store, caplog: pytest.LogCaptureFixture
) -> None:
    for epoch in range(1, 6):
        AttemptJournal(folder, record(epoch)).begin()
    folder.put(record(5).key, [b"{"])
    assert [read.epoch for read in read_attempts(folder, newest=3)] == [3, 4]
    assert "e000005" in caplog.text
    assert read_attempts(folder, newest=0) == []


def test_a_store_that_does_not_take_the_last_words_is_no_failure(
    folder: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = AttemptJournal(folder, record())
    journal.begin()

    def refuse(*_: object) -> None:
        raise Unavailable("the disk is full")

    monkeypatch.setattr(folder, "put_if_match", refuse)
    assert not journal.end("exit 75")
    assert "the disk is full" in caplog.text


def test_a_process_that_lost_the_run_writes_its_end_over_its_own_words_only(folder: Store) -> None:
    journal = AttemptJournal(folder, record())
    assert not journal.end("exit 79"), "the run was removed, and no trace of it comes back"
    assert list(folder.list("")) == []
    begun_anew = record().model_copy(update={"holder": "host:2:def"})
    AttemptJournal(folder, begun_anew).begin()
    assert not journal.end("exit 79")
    assert read_attempts(folder, newest=9) == [begun_anew]


def test_words_that_are_being_written_with_a_checkpoint_do_not_keep_the_last_ones_out(
    folder: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = AttemptJournal(folder, record())
    journal.begin()
    get = folder.get

    def overtaken(key: str) -> tuple[bytes, str]:
        found = get(key)
        journal.note(step=9)
        folder.put(key, journal.objects()[key])
        monkeypatch.setattr(folder, "get", get)
        return found

    monkeypatch.setattr(folder, "get", overtaken)
    assert journal.end("exit 143")
    assert [read.ended for read in read_attempts(folder, newest=9)] == ["exit 143"]


def test_the_age_of_this_process_is_known() -> None:
    age = seconds_of_this_process()
    assert age is not None and 0 < age < 24 * 3600
