"""Trackers of others are told everything once, and hold nobody up."""

import logging
import time

import pytest

from app.errors import AccessDenied, Unavailable
from app.observe.tracking import CheckpointLink, Limits, Measured, Sender, Tracking, values_of
from tests.support.rows import row
from tests.support.tracker_service import RememberedService

QUICK = Limits(interval=0.0, batch=4, first_pause=0.001, longest_pause=0.01)
AWAY = Unavailable("nobody answers at https://someone:secret@tracker.example.org")


def test_a_tracker_is_sent_what_it_lacks_and_nothing_twice() -> None:
    service = RememberedService()
    service.rows = [row(step) for step in (1, 2, 3, 6, 7)]  # 6 and 7 were lost after they were told
    tracking = Tracking([Sender(service, [row(step) for step in range(1, 5)], QUICK)])
    service.wait_until(lambda: 4 in service.steps)
    for step in range(5, 11):  # and are made again, long after it was asked what it has
        tracking.add(row(step))
    link = CheckpointLink(10, "s3://bucket/run/checkpoints/step-10", "ab" * 32)
    tracking.link(link)
    tracking.measured(Measured(10, 1.0, {"eval/task": 0.5}))
    assert tracking.close("finished")
    assert sorted(service.steps) == list(range(1, 11))
    assert service.steps[5:] == [4, 5, 8, 9, 10], "in order"
    assert (service.links, service.endings) == ([link], ["finished"])
    assert service.results[0].values == {"eval/task": 0.5}


def test_a_server_that_is_away_gets_all_rows_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = RememberedService()
    service.refusals = [AWAY, AWAY, AWAY]
    service.failures, service.after = [AWAY], 2  # and it dies again inside of a batch
    tracking = Tracking([Sender(service, [row(1), row(2), row(3)], QUICK)])
    tracking.add(row(4))
    service.wait_until(lambda: service.steps[-1:] == [4])
    assert tracking.close("preempted")
    assert service.steps == [1, 2, 3, 4]
    assert service.connected == 5, "after a failure it is asked again what it has"
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1 and said[0].startswith("wandb does not answer, and training goes on")
    assert "secret" not in caplog.text


def test_a_server_that_stays_away_is_tried_once_more_at_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = RememberedService()
    service.refusals = [AWAY] * 100_000
    tracking = Tracking([Sender(service, [row(1)], QUICK)])
    assert not tracking.close("preempted")
    assert "wandb is behind by 1 row: the next attempt tells it the rest" in caplog.text


def test_a_server_that_never_answers_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    service = RememberedService()
    service.answers.clear()
    tracking = Tracking([Sender(service, [], QUICK)])
    began = time.monotonic()
    for step in range(1, 1_001):
        tracking.add(row(step))
    tracking.link(CheckpointLink(1, "s3://bucket/run", "ab" * 32))
    assert not tracking.close("preempted", patience=0.2)
    assert time.monotonic() - began < 5
    assert "wandb is behind by 1,000 rows" in caplog.text
    service.answers.set()


def test_the_end_of_a_grace_period_comes_first() -> None:
    service = RememberedService()
    service.answers.clear()
    tracking = Tracking([Sender(service, [row(1)], QUICK)])
    asked: list[float] = []

    def fits(seconds: float) -> bool:
        asked.append(seconds)
        return len(asked) < 3

    assert not tracking.close("preempted", patience=1e9, fits=fits)
    assert len(asked) == 3
    service.answers.set()


@pytest.mark.parametrize("error", [AccessDenied("wrong key"), RuntimeError("a bug of a library")])
def test_a_tracker_that_refuses_is_left_alone_and_named_once(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    service = RememberedService()
    service.refusals = [error]
    sender = Sender(service, [row(1)], QUICK)
    assert sender.wait(60)
    tracking = Tracking([sender])
    tracking.add(row(2))
    assert not tracking.close("finished")
    assert (service.connected, service.rows) == (1, [])
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("wandb gets nothing more from this attempt, and training goes on: ")
    assert str(error) in first and second.startswith("wandb is behind by 1 row")


def test_beyond_a_bound_every_second_waiting_row_is_left_out() -> None:
    service = RememberedService()
    service.answers.clear()
    limits = Limits(interval=0.0, batch=100, most_rows=8)
    tracking = Tracking([Sender(service, [], limits)])
    for step in range(1, 10):
        tracking.add(row(step))
    service.answers.set()
    assert tracking.close("finished")
    assert service.steps == [1, 3, 5, 7, 9]


def test_a_process_that_has_lost_the_run_tells_nothing_more() -> None:
    service = RememberedService()
    tracking = Tracking([Sender(service, [row(1)], QUICK, still_ours=lambda: False)])
    assert not tracking.close("failed")
    assert (service.rows, service.endings) == ([], [])


def test_a_row_is_shown_with_all_its_numbers_but_those_that_are_not_known() -> None:
    shown = values_of(row(3))
    assert shown["loss"] == 7.0 and shown["attempt"] == 1 and shown["tokens"] == 300
    assert not {"step", "time", "mfu", "validation_loss"} & shown.keys()
