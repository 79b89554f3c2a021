"""Wall clocks that are wrong or jump: no second writer, no lost lease, no wrong order.

On S3, where a store knows no kernel locks and silence is all that tells the dead.
"""

import functools
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Self

import pytest

from app.observe.rows import stored_rows
from app.run.clock import Clock
from app.run.layout import LEASE
from app.run.lease import Lease
from app.run.view import read_view
from app.stores.contract import Store
from app.stores.opening import open_store
from tests.support.forked_job import ForkedJobRunner, at
from tests.support.interposed import Interposed
from tests.support.job import JobRunner, Outcome, outcome
from tests.support.stored_run import stored_attempts

pytestmark = pytest.mark.slow
HOURS = 3600.0
TTL = "2"


def wrong_clock(offset: Callable[[], float]) -> None:
    """Shift what this process takes for the time of day by so many seconds."""
    right = time.time
    time.time = lambda: right() + offset()

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) + timedelta(seconds=offset())

    for name, module in list(sys.modules.items()):
        if name.startswith("app.") and getattr(module, "datetime", None) is datetime:
            module.datetime = Shifted  # type: ignore[attr-defined]


def is_off_by(seconds: float) -> None:
    wrong_clock(lambda: seconds)


def jumps_in_step_3(seconds: float) -> None:
    jumped: list[bool] = []
    wrong_clock(lambda: seconds if jumped else 0.0)
    at("app.training.step_log.StepLog.log_row", 3, lambda: jumped.append(True))


def dies_in_step_4(seconds: float) -> None:
    is_off_by(seconds)
    at("app.training.step_log.StepLog.log_row", 4, lambda: os.kill(os.getpid(), signal.SIGKILL))


def off_by(job: JobRunner, seconds: float) -> ForkedJobRunner:
    return ForkedJobRunner(job.environment, before=functools.partial(is_off_by, seconds))


@pytest.fixture
def job(job_environment: dict[str, str], bucket: str, s3_server: str) -> ForkedJobRunner:
    return job_at(f"s3://{bucket}", {**job_environment, "AWS_ENDPOINT_URL_S3": s3_server})


def job_at(uri: str, environment: dict[str, str]) -> ForkedJobRunner:
    return ForkedJobRunner(
        {
            **environment,
            "CHECKPOINT_URI": uri,
            "TRAINER": "torch",
            "GLOBAL_BATCH_SIZE": "4",
            "TOTAL_STEPS": "6",
            "CHECKPOINT_EVERY_STEPS": "2",
            "LEASE_TTL": TTL,
        }
    )


@pytest.fixture(scope="module")
def undisturbed(
    job_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Outcome:
    uri = f"file://{tmp_path_factory.mktemp('undisturbed')}"
    finished = job_at(uri, job_environment).run("train")
    assert finished.code == 0, finished.log
    return outcome(open_store(uri, "tiny"))


def store_of(job: JobRunner) -> Store:
    return open_store(job.environment["CHECKPOINT_URI"], "tiny")


@pytest.mark.parametrize("hours", [30, -30])
def test_a_start_with_a_wrong_clock_does_not_take_the_run_from_a_live_holder(
    hours: float, job: ForkedJobRunner, s3_answers: Interposed
) -> None:
    # The holder's own clock is off the other way: its lease seems to have ended long ago, or
    # to last for days.
    clock = Clock(unix=lambda: time.time() - hours * HOURS)
    holder = Lease(store_of(job), float(TTL), "a live one", clock)
    holder.acquire(0, lambda line: None, lambda: False)

    def renewed_at_each_look(environ: dict[str, Any]) -> None:
        if environ["REQUEST_METHOD"] == "GET" and environ["PATH_INFO"].endswith(LEASE):
            holder.renew()

    s3_answers.answering = renewed_at_each_look
    refused = off_by(job, hours * HOURS).with_(LEASE_WAIT="3").run("train")
    assert refused.code == 75, refused.log
    assert "is held by a live one (epoch 1), which is alive" in refused.log
    s3_answers.reset()
    holder.check()
    holder.release()
    assert [info.key for info in store_of(job).list("")] == [LEASE]


@pytest.mark.parametrize("hours", [30, -30])
def test_a_dead_holder_with_a_wrong_clock_is_taken_over_by_its_silence(
    hours: float, job: ForkedJobRunner, undisturbed: Outcome
) -> None:
    dying = functools.partial(dies_in_step_4, -hours * HOURS)
    dead = ForkedJobRunner(job.environment, before=dying).run("train")
    assert dead.code == -signal.SIGKILL
    finished = off_by(job, hours * HOURS).run("train")
    assert finished.code == 0, finished.log
    assert "which has been silent for" in finished.log
    assert outcome(store_of(job)).differences(undisturbed) == []
    newest = read_view(store_of(job)).checkpoints[0].name
    assert (newest.step, newest.epoch) == (6, 2)
    assert [record.epoch for record in stored_attempts(store_of(job), newest=9)] == [1, 2]


@pytest.mark.parametrize("hours", [30, -30])
def test_a_clock_that_jumps_in_the_middle_changes_nothing(
    hours: float, job: ForkedJobRunner, undisturbed: Outcome
) -> None:
    jumping = ForkedJobRunner(
        job.environment, before=functools.partial(jumps_in_step_3, hours * HOURS)
    )
    finished = jumping.run("train")
    assert finished.code == 0, finished.log
    assert "lease" not in finished.log and "Traceback" not in finished.log
    assert outcome(store_of(job)).differences(undisturbed) == []
    rows = stored_rows(store_of(job))
    assert abs(rows[-1].time - rows[0].time - hours * HOURS) < HOURS, "the clock did not jump"
    assert all(row.tokens_per_second is None or row.tokens_per_second > 0 for row in rows)


SKEWED = (
    403,
    "<Error><Code>RequestTimeTooSkewed</Code><Message>The difference between the request time "
    "and the current time is too large.</Message></Error>",
)


def test_a_store_that_finds_the_clock_wrong_is_asked_again_later_and_says_which_clock(
    job: ForkedJobRunner, s3_answers: Interposed
) -> None:
    s3_answers.answering = lambda environ: SKEWED
    refused = job.run("train")
    s3_answers.reset()
    assert refused.code == 75, refused.log
    assert refused.log.count(" ERROR: ") == 1 and "set this machine's clock" in refused.log
    assert list(store_of(job).list("")) == []


def test_a_clock_that_the_store_finds_wrong_in_the_middle_costs_nothing_once_it_is_set(
    job: ForkedJobRunner, s3_answers: Interposed, undisturbed: Outcome, tmp_path: Path
) -> None:
    def refuse_from_now_on(_: object) -> None:
        s3_answers.answering = lambda environ: SKEWED

    waiting, actions = job.halting("app.training.saver.prune", tmp_path, refuse_from_now_on)
    actions["failed, again in"] = lambda _: s3_answers.reset()
    finished = waiting.run("train", when=actions)
    assert finished.code == 0, finished.log
    assert "set this machine's clock" in finished.log
    assert outcome(store_of(job)).differences(undisturbed) == []
