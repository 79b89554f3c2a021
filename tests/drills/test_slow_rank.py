"""A process that computes more than the others is named in the log of a real run."""

import re

import pytest

from tests.support.hooked_workers import slowed_down
from tests.support.job import JobRunner
from tests.support.process_runs import job, variables_of_run

__all__ = ["job", "variables_of_run"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_process_that_all_wait_for_is_named(job: JobRunner) -> None:
    job = job.with_(DEVICES="2", TOTAL_STEPS="105", LOG_EVERY_STEPS="50")
    finished = slowed_down(job, 1, times=8).run("train")
    assert finished.code == 0, finished.log
    named = re.findall(r"slow for 50 steps.*? rank (\d): ", finished.log)
    assert named == ["1"], finished.log
