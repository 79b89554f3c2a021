"""Runs of several processes in drills: their variables, what they leave, what disturbs them."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.run.view import read_view
from app.stores.contract import Store
from app.stores.opening import open_store
from tests.support.job import Finished, JobProcess, JobRunner, Outcome, outcome
from tests.support.processes import wait_until_gone, workers_of

STEPS = 20
SLACK = 60.0  # seconds, for a busy machine


@pytest.fixture(scope="module")
def variables_of_run(
    job_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    return {
        **job_environment,
        "DATA_DIR": str(tmp_path_factory.mktemp("data")),
        "TRAINER": "torch",
        "TOTAL_STEPS": str(STEPS),
        "CHECKPOINT_EVERY_STEPS": "8",
        "PRECISION": "32-true",
        "LEASE_TTL": "3",
        "PEER_TIMEOUT": "8",
        "GRACE_SECONDS": "60",
    }


@pytest.fixture
def job(variables_of_run: dict[str, str], tmp_path: Path) -> JobRunner:
    return JobRunner({**variables_of_run, "CHECKPOINT_URI": f"file://{tmp_path}/store"})


@pytest.fixture(scope="module")
def undisturbed(
    variables_of_run: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Outcome]:
    """By the number of processes, and more variables, what an undisturbed run leaves."""
    made: dict[tuple[str, ...], Outcome] = {}

    def by(processes: int, **changes: str) -> Outcome:
        key = (str(processes), *(f"{name}={value}" for name, value in sorted(changes.items())))
        if key not in made:
            uri = f"file://{tmp_path_factory.mktemp('undisturbed')}"
            changes |= {"CHECKPOINT_URI": uri, "DEVICES": str(processes)}
            finished = JobRunner({**variables_of_run, **changes}).run("train")
            assert finished.code == 0, finished.log
            made[key] = outcome(open_store(uri, "tiny"))
        return made[key]

    return by


def store_of(job: JobRunner) -> Store:
    return open_store(job.environment["CHECKPOINT_URI"], "tiny")


def in_bucket(job: JobRunner, request: pytest.FixtureRequest) -> JobRunner:
    """The same job with its checkpoints in a new bucket."""
    bucket, server = request.getfixturevalue("bucket"), request.getfixturevalue("s3_server")
    return job.with_(CHECKPOINT_URI=f"s3://{bucket}", AWS_ENDPOINT_URL_S3=server)


def newest_step(job: JobRunner) -> int:
    return read_view(store_of(job)).newest_step


def steps_in(log: str) -> list[int]:
    return [int(step) for step in re.findall(r" step (\d+)/\d+ ", log)]


def losses(made: Outcome) -> list[float]:
    return [loss for _, loss, _ in made.rows]


class Disturbance:
    """Does something to one process, or to several, when a line of the log appears."""

    def __init__(
        self, number: signal.Signals, *ranks: int, launcher: bool = False, times: int = 1
    ) -> None:
        self._number, self._ranks, self._launcher, self._times = number, ranks, launcher, times
        self.workers: dict[int, int] = {}
        self.at = 0.0

    def __call__(self, process: JobProcess) -> None:
        self.workers = workers_of(process.pid)
        self.at = time.monotonic()
        for _ in range(self._times):
            for rank in self._ranks:
                os.kill(self.workers[rank], self._number)
            if self._launcher:
                process.send_signal(self._number)

    def assert_over(self, ended: Finished, seconds: float) -> None:
        assert time.monotonic() - self.at < seconds + SLACK, ended.log
        assert wait_until_gone(self.workers, 0) == [], ended.log
