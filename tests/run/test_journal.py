"""The record of an attempt, from its begin to its end."""

import json

import pytest

from app.errors import Unavailable
from app.run.journal import AttemptJournal, attempt_table, summary
from app.stores.contract import Store
from tests.support.stored_run import attempt_record, stored_attempts


def test_a_journal_is_read_back_with_its_end(folder: Store) -> None:
    journal = AttemptJournal(folder, attempt_record(3, 20))
    journal.begin()
    journal.note(step=32, seconds=60.0, seconds_to_first_step=4.25)
    journal.saved(0.5)
    journal.saved(0.25)
    journal.committed(3.0)
    journal.committed(2.0)
    journal.end("target reached")
    (read,) = stored_attempts(folder, newest=10)
    assert (read.steps, read.saves, read.stall_seconds) == (12, 2, 0.75)
    assert (read.longest_upload_lag, read.ended) == (3.0, "target reached")
    assert (read.commits, read.failed_saves) == (2, 0)
    assert summary(read) == (
        "attempt 3: 12 steps in 1:00; 2 saves held training up for 0.75 s (1.25 %), the slowest "
        "was in the store after 3.0 s"
    )


def test_the_newest_attempts_are_those_of_the_highest_epochs(folder: Store) -> None:
    for epoch in (999_999, 1_000_000, 1_000_001):
        AttemptJournal(folder, attempt_record(epoch)).begin()
    assert [read.epoch for read in stored_attempts(folder, newest=2)] == [1_000_000, 1_000_001]


@pytest.mark.parametrize(
    "wrong",
    [{"step": 10**30}, {"step": -1}, {"seconds": float("inf")}, {"epoch": 2}, {"saves": "many"}],
)
def test_a_record_with_numbers_that_cannot_be_is_left_out(
    wrong: dict[str, object], folder: Store, caplog: pytest.LogCaptureFixture
) -> None:
    record = attempt_record()
    folder.put(record.key, [json.dumps(record.model_dump() | wrong).encode()])
    assert stored_attempts(folder, newest=9) == []
    assert f"{record.key} cannot be read" in caplog.text


def test_an_end_of_any_length_is_read_back(folder: Store) -> None:
    journal = AttemptJournal(folder, attempt_record())
    journal.begin()
    assert journal.end("exit 75: " + "x" * 10**6)
    (read,) = stored_attempts(folder, newest=9)
    assert read.ended is not None and read.ended.startswith("exit 75: x")


def test_a_killed_attempt_leaves_the_words_of_its_last_checkpoint(folder: Store) -> None:
    journal = AttemptJournal(folder, attempt_record())
    journal.begin()
    journal.note(step=5)
    for key, content in journal.objects().items():
        folder.put(key, content)
    journal.note(step=9)
    (read,) = stored_attempts(folder, newest=10)
    assert (read.step, read.ended) == (5, None)
    assert attempt_table([read])[1].endswith("no end recorded: killed, or still running")


def test_the_newest_attempts_are_shown_and_a_broken_one_is_said(
    folder: Store, caplog: pytest.LogCaptureFixture
) -> None:
    for epoch in range(1, 6):
        AttemptJournal(folder, attempt_record(epoch)).begin()
    folder.put(attempt_record(5).key, [b"{"])
    assert [read.epoch for read in stored_attempts(folder, newest=3)] == [3, 4]
    assert "e000005" in caplog.text
    assert stored_attempts(folder, newest=0) == []


def test_a_store_that_does_not_take_the_last_words_is_no_failure(
    folder: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = AttemptJournal(folder, attempt_record())
    journal.begin()

    def refuse(*_: object) -> None:
        raise Unavailable("the disk is full")

    monkeypatch.setattr(folder, "put_if_match", refuse)
    assert not journal.end("exit 75")
    assert "the disk is full" in caplog.text


def test_an_end_that_nobody_takes_is_said_once(
    folder: Store, caplog: pytest.LogCaptureFixture
) -> None:
    journal = AttemptJournal(folder, attempt_record())
    assert not journal.end("target reached"), "the run's folder was removed"
    journal.close()
    assert caplog.text.count("the end of this attempt was not recorded") == 1


def test_a_process_that_lost_the_run_writes_its_end_over_its_own_words_only(folder: Store) -> None:
    journal = AttemptJournal(folder, attempt_record())
    assert not journal.end("exit 79"), "the run was removed, and no trace of it comes back"
    assert list(folder.list("")) == []
    begun_anew = attempt_record().model_copy(update={"holder": "host:2:def"})
    AttemptJournal(folder, begun_anew).begin()
    assert not journal.end("exit 79")
    assert stored_attempts(folder, newest=9) == [begun_anew]


def test_words_that_are_being_written_with_a_checkpoint_do_not_keep_the_last_ones_out(
    folder: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = AttemptJournal(folder, attempt_record())
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
    assert [read.ended for read in stored_attempts(folder, newest=9)] == ["exit 143"]


def test_an_attempt_that_said_its_last_words_may_still_have_been_killed(folder: Store) -> None:
    journal = AttemptJournal(folder, attempt_record())
    journal.begin()
    (begun,) = stored_attempts(folder, newest=1)
    journal.end("target reached")
    (ended,) = stored_attempts(folder, newest=1)
    journal.close()
    (closed,) = stored_attempts(folder, newest=1)
    assert [read.was_killed for read in (begun, ended, closed)] == [True, True, False]
    assert not attempt_record().model_copy(update={"ended": "by an earlier version"}).was_killed


def test_tries_to_save_that_failed_are_in_the_record_the_summary_and_the_table(
    folder: Store,
) -> None:
    journal = AttemptJournal(folder, attempt_record())
    journal.begin()
    journal.save_failed()
    journal.save_failed()
    journal.end("exit 75")
    (read,) = stored_attempts(folder, newest=10)
    assert summary(read).endswith("; 2 tries to save failed")
    once = read.model_copy(update={"step": 1, "saves": 1, "commits": 1, "failed_saves": 1})
    assert summary(once) == (
        "attempt 1: 1 step in 0:00; 1 save held training up for 0.00 s (0.00 %), it was in the "
        "store after 0.0 s; 1 try to save failed"
    )
    one_of_four = once.model_copy(update={"saves": 4, "stall_seconds": 0.5})
    assert "4 saves held training up for 0.50 s" in summary(one_of_four)
    assert ", one was in the store after 0.0 s; 1 try" in summary(one_of_four)
    assert "in the store after" not in summary(read), "nothing was"
    header, line = attempt_table([read])
    column = header.split().index("failed") + 1  # "1st step" is two words
    assert line.replace(" s ", " ").split()[column - 2] == "2"
