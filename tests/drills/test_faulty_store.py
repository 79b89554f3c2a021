"""A store that breaks, refuses, trickles or lies: nothing is lost, and the exit code is right.

Real jobs against a real server; the faults are between them.
"""

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.stores.opening import open_store
from tests.support.faulty_link import Fault, FaultyLink, faulty_link
from tests.support.forked_job import ForkedJobRunner, signal_in_step
from tests.support.interposed import Interposed
from tests.support.job import Action, JobRunner, Outcome, outcome
from tests.support.store_fixtures import S3Server

pytestmark = pytest.mark.slow
SEED = 7


@pytest.fixture
def link(
    running_s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultyLink]:
    with faulty_link(running_s3.endpoint, SEED) as between:
        print(f"seed {SEED}")
        yield between


def s3_job(
    job_environment: dict[str, str], bucket: str, endpoint: str, run: str
) -> ForkedJobRunner:
    return ForkedJobRunner(
        {
            **job_environment,
            "RUN_NAME": run,
            "CHECKPOINT_URI": f"s3://{bucket}/prefix",
            "AWS_ENDPOINT_URL_S3": endpoint,
            "TRAINER": "torch",
            "TOTAL_STEPS": "12",
            "CHECKPOINT_EVERY_STEPS": "2",
            "KEEP_TOP": "1",
            "LEASE_TTL": "2",
        }
    )


@pytest.fixture(scope="module")
def undisturbed(
    running_s3: S3Server, s3_client: Any, job_environment: dict[str, str]
) -> Iterator[Outcome]:
    """What the run is without any fault."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", running_s3.endpoint)
        s3_client.create_bucket(Bucket="undisturbed")
        job = s3_job(job_environment, "undisturbed", running_s3.endpoint, "straight")
        finished = job.run("train")
        assert finished.code == 0, finished.log
        yield outcome(open_store("s3://undisturbed/prefix", "straight"))


def disturbed(
    job: ForkedJobRunner, folder: Path, begin: Action
) -> tuple[ForkedJobRunner, dict[str, Action]]:
    """`begin` in step 3, which waits for it: at least the last commit is still to come."""
    return job.halting("app.training.step_log.StepLog.log_row", folder, begin, occurrence=3)


def assert_whole(job: JobRunner, undisturbed: Outcome, bucket: str) -> None:
    verified = job.run("checkpoints", "verify")
    assert verified.code == 0, verified.log
    store = open_store(f"s3://{bucket}/prefix", job.environment["RUN_NAME"])
    assert outcome(store).differences(undisturbed) == []
    assert not list(store.list("quarantine/"))


@pytest.mark.parametrize("fault", ["reset", "slow", "cut"])
def test_a_link_that_breaks_costs_nothing(
    fault: Fault,
    link: FaultyLink,
    bucket: str,
    s3_server: str,
    job_environment: dict[str, str],
    undisturbed: Outcome,
    tmp_path: Path,
) -> None:
    def begin(_: object) -> None:
        link.fault, link.left = fault, 12

    job = s3_job(job_environment, bucket, link.url, fault)
    waiting, actions = disturbed(job, tmp_path, begin)
    finished = waiting.run("train", when=actions)
    assert finished.code == 0, finished.log
    assert link.suffered, "no request met the fault"
    assert_whole(job.with_(AWS_ENDPOINT_URL_S3=s3_server), undisturbed, bucket)


def test_torn_downloads_at_a_resume_are_read_again_and_called_no_damage(
    link: FaultyLink,
    bucket: str,
    s3_server: str,
    job_environment: dict[str, str],
    undisturbed: Outcome,
) -> None:
    job = s3_job(job_environment, bucket, link.url, "torn")
    killed = job.preceded_by(signal_in_step, 7, signal.SIGKILL).run("train")
    assert killed.code == -signal.SIGKILL
    link.fault, link.left = "torn", 4  # one request is sent five times at most
    finished = job.run("train")
    assert finished.code == 0, finished.log
    assert link.suffered == 4
    assert "resumed from step" in finished.log and "DAMAGED" not in finished.log
    assert_whole(job.with_(AWS_ENDPOINT_URL_S3=s3_server), undisturbed, bucket)


ANSWERS = {
    "500": (500, "<Error><Code>InternalError</Code></Error>"),
    "503": (503, "<Error><Code>SlowDown</Code></Error>"),
    "403": (403, "<Error><Code>AccessDenied</Code></Error>"),
}


@pytest.mark.parametrize("status", list(ANSWERS))
def test_refusals_that_pass_cost_nothing(
    status: str,
    s3_answers: Interposed,
    bucket: str,
    s3_server: str,
    job_environment: dict[str, str],
    undisturbed: Outcome,
    tmp_path: Path,
) -> None:
    def refuse(environ: dict[str, Any]) -> tuple[int, str] | None:
        return ANSWERS[status] if environ["REQUEST_METHOD"] in ("PUT", "POST") else None

    def begin(_: object) -> None:
        s3_answers.answering = refuse

    # The SDK's own tries are over when the job says so; how many there were is not ours to count.
    job = s3_job(job_environment, bucket, s3_server, f"passing-{status}")
    waiting, actions = disturbed(job, tmp_path, begin)
    actions["failed, again in"] = lambda _: s3_answers.reset()
    finished = waiting.run("train", when=actions)
    assert finished.code == 0, finished.log
    assert_whole(job, undisturbed, bucket)


@pytest.mark.parametrize(("status", "code"), [("503", 75), ("403", 77)])
def test_refusals_that_stay_end_the_job_and_the_next_start_goes_on(
    status: str,
    code: int,
    s3_answers: Interposed,
    bucket: str,
    s3_server: str,
    job_environment: dict[str, str],
    undisturbed: Outcome,
    tmp_path: Path,
) -> None:
    def begin(_: object) -> None:
        s3_answers.answering = lambda environ: ANSWERS[status]

    # The saver waits, just after its first commit: which step that is may differ.
    job = s3_job(job_environment, bucket, s3_server, f"staying-{status}")
    waiting, actions = job.halting("app.training.saver.prune", tmp_path, begin)
    given_up = waiting.with_(GIVE_UP_SECONDS="1").run("train", when=actions)
    assert given_up.code == code, given_up.log
    assert "GIVE_UP_SECONDS=1" in given_up.log
    s3_answers.reset()
    finished = job.run("train")
    assert finished.code == 0, finished.log
    (saved,) = re.findall(r"checkpoint step (\d+) saved", given_up.log)
    assert f"resumed from step {saved} " in finished.log
    assert_whole(job, undisturbed, bucket)


@pytest.mark.parametrize("status", ["503", "403"])
def test_a_store_that_refuses_from_the_start_is_never_taken_for_an_empty_one(
    status: str,
    s3_answers: Interposed,
    bucket: str,
    s3_server: str,
    job_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    job = s3_job(job_environment, bucket, s3_server, "refused").with_(DATA_DIR=str(tmp_path))
    s3_answers.answering = lambda environ: ANSWERS[status]
    refused = job.run("train")
    assert refused.code == {"503": 75, "403": 77}[status], refused.log
    assert refused.log.count(" ERROR: ") == 1
    s3_answers.reset()
    assert list(open_store(f"s3://{bucket}/prefix", "refused").list("")) == []
