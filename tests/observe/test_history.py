"""The attempts in time: what ran, and what was lost."""

from app.observe.history import spans_of
from app.run.journal import AttemptRecord
from tests.support.stored_run import attempt_record

BEGAN = 1767225600.0  # 2026-01-01


def attempt(
    epoch: int, minute: int, start: int, step: int, seconds: float, lost: int = 0
) -> AttemptRecord:
    return attempt_record(epoch, start).model_copy(
        update={
            "started_at": f"2026-01-01T00:{minute:02d}:00+00:00",
            "step": step,
            "seconds": seconds,
            "steps_lost": lost,
        }
    )


def test_what_was_lost_is_told_in_seconds_of_the_attempt_that_made_it() -> None:
    # Ten steps a minute. It died at step 15, behind a checkpoint at step 10, whose record it wrote.
    spans = spans_of([attempt(1, 0, 0, 10, 60.0), attempt(2, 3, 10, 20, 60.0, lost=5)], None, 0.0)
    assert [(span.start - BEGAN, span.end - BEGAN, span.lost) for span in spans] == [
        (0.0, 90.0, 30.0),
        (180.0, 240.0, 0.0),
    ]


def test_an_attempt_that_runs_reaches_to_its_last_sign_of_life() -> None:
    (span,) = spans_of([attempt(1, 0, 0, 10, 60.0)], 1, BEGAN + 75)
    assert (span.kind, span.end - BEGAN) == ("running", 75.0)
    (span,) = spans_of([attempt(1, 0, 0, 10, 60.0)], None, BEGAN + 75)
    assert (span.kind, span.end - BEGAN) == ("unknown", 60.0)


def test_an_attempt_never_reaches_into_the_next_one() -> None:
    spans = spans_of(
        [attempt(1, 0, 0, 10, 50.0), attempt(2, 1, 10, 10, 0.0, lost=9_000)], None, 0.0
    )
    assert spans[0].end - BEGAN == 60.0 and spans[0].lost <= 60.0


def test_times_that_cannot_be_meant_are_left_out() -> None:
    bad = [
        attempt_record(n).model_copy(update={"started_at": at})
        for n, at in enumerate(["", "x" * 99, "0001-01-01"], 1)
    ]
    assert spans_of(bad, None, 0.0) == []
