"""What the page says that a run is doing."""

from dataclasses import replace

import pytest

from app.observe.activity import activity_of
from app.observe.reported_run import ReportedRun
from app.run.lease import LeaseRecord
from app.run.waiting import Waiting
from tests.support.stored_run import attempt_record

NOW = 1_000_000.0
LEASE = LeaseRecord(
    holder="a:1:x", epoch=2, renewal=5, ttl=10, expires_at=NOW + 8, doing="training", step=41
)
WAITING = Waiting(holder="b:2:y", doing="preparing data", since=NOW - 63, at=NOW - 1, every=3)
RUN = ReportedRun("run", None, [], [attempt_record(2)], lease=LEASE, read_at=NOW)
SILENT = LEASE.model_copy(update={"expires_at": NOW - 100})
ENDED = attempt_record(2).model_copy(update={"step": 50, "ended": "target reached"})
STOPPED = ENDED.model_copy(update={"ended": "exit 143: stopped"})
BEFORE = attempt_record(1).model_copy(update={"ended": "exit 75: x"})
RELEASED = LEASE.model_copy(update={"released": True})
DEAD_START = WAITING.model_copy(update={"at": NOW - 200})
SILENCE = "silent since 1970-01-12 13:44:50 UTC, 1:50 ago"
DENIED = ENDED.model_copy(update={"ended": "exit 77: denied"})


def doing(what: str) -> LeaseRecord:
    return LEASE.model_copy(update={"doing": what, "step": None})


@pytest.mark.parametrize(
    ("changes", "kind", "headline"),
    [
        ({}, "running", "training: step 41"),
        ({"lease": doing("restoring")}, "running", "restoring"),
        ({"lease": doing("")}, "running", "held by a process"),
        ({"lease": SILENT}, "silent", SILENCE),
        ({"attempts": [ENDED]}, "done", "finished at step 50"),
        ({"attempts": [STOPPED]}, "stopped", "stopped at step 50"),
        ({"attempts": [DENIED]}, "failed", "ended with an error at step 50"),
        ({"attempts": [BEFORE]}, "running", "training: step 41"),
        ({"lease": RELEASED}, "idle", "idle: no process has the run"),
        ({"lease": None, "attempts": []}, "idle", "not started yet"),
        ({"lease": None, "attempts": [], "waiting": WAITING}, "running", "preparing data"),
        ({"lease": SILENT, "waiting": WAITING}, "running", "preparing data"),
        ({"lease": SILENT, "waiting": DEAD_START}, "silent", SILENCE),
        ({"waiting": WAITING}, "running", "training: step 41"),
    ],
)  # fmt: skip
def test_the_headline_says_what_goes_on(
    changes: dict[str, object], kind: str, headline: str
) -> None:
    found = activity_of(replace(RUN, **changes))  # type: ignore[arg-type]
    assert (found.kind, found.headline) == (kind, headline)


def test_a_start_that_waits_is_named_beside_the_holder() -> None:
    waits = WAITING.model_copy(update={"doing": "waiting for the lease"})
    assert activity_of(replace(RUN, waiting=waits)).notes[-1] == (
        "another start: waiting for the lease, by b:2:y, for 1:02"
    )
