"""Processes that could neither end nor go on: each ends with its code, after it has committed."""

import ctypes
import functools
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from app.stores.opening import open_store
from tests.support.forked_job import ForkedJobRunner, at
from tests.support.job import Finished, Outcome, newest_checkpoint, outcome
from tests.support.six_steps import SIX_STEPS, undisturbed

__all__ = ["undisturbed"]

pytestmark = pytest.mark.slow
TRAINERS = pytest.mark.parametrize("trainer", ["lightning", "torch"])
LOG_ROW = "app.training.step_log.StepLog.log_row"


@pytest.fixture(scope="module")
def variables_of_run(job_environment: dict[str, str]) -> dict[str, str]:
    return {**job_environment, **SIX_STEPS, "CHECKPOINT_EVERY_STEPS": "100"}


@pytest.fixture
def job(variables_of_run: dict[str, str], tmp_path: Path) -> ForkedJobRunner:
    return ForkedJobRunner({**variables_of_run, "CHECKPOINT_URI": f"file://{tmp_path}/store"})


def kill_a_worker(number: signal.Signals) -> None:
    pid = multiprocessing.active_children()[0].pid
    assert pid is not None
    os.kill(pid, number)


def run_out_of_memory() -> NoReturn:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB "
        "of which 5.12 MiB is free. Process 7 has 79.10 GiB memory in use. Of the allocated memory "
        "70.50 GiB is allocated by PyTorch, and 1.00 GiB is reserved by PyTorch but unallocated."
    )


def a_bug() -> NoReturn:
    raise ZeroDivisionError("a bug in the loop")


def hang() -> None:
    """Wait in C for a lock that is never given back: no signal is heard there."""
    print("it hangs now", file=sys.stderr, flush=True)
    lock = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(lock)


def hang_with_a_stopped_worker() -> None:
    kill_a_worker(signal.SIGSTOP)
    hang()


def in_step(job: ForkedJobRunner, step: int, act: Callable[[], object]) -> ForkedJobRunner:
    """The same job, in which `act` happens once that step is finished and before its row."""
    return job.preceded_by(at, LOG_ROW, step, act)


def errors(finished: Finished) -> list[str]:
    return [line for line in finished.log.splitlines() if " ERROR: " in line]


def assert_goes_on(job: ForkedJobRunner, step: int, undisturbed: Outcome) -> None:
    """The next start resumes from `step`, and the finished run is the undisturbed one."""
    finished = job.run("train")
    assert finished.code == 0, finished.log
    assert f"resumed from step {step} " in finished.log
    last = outcome(open_store(job.environment["CHECKPOINT_URI"], "tiny"))
    assert last.differences(undisturbed) == []


@TRAINERS
def test_a_killed_data_worker_ends_the_job_with_75_and_costs_no_step(
    trainer: str, job: ForkedJobRunner, undisturbed: Outcome
) -> None:
    job = job.with_(TRAINER=trainer, NUM_WORKERS="2")
    # In its first steps, so that what the workers have loaded ahead is not enough for the rest.
    killed = functools.partial(kill_a_worker, signal.SIGKILL)
    ended = in_step(job, 1, killed).run("train")
    assert ended.code == 75, ended.log
    (line,) = errors(ended)
    assert "a data loading process was killed by SIGKILL" in line
    assert "memory" in line and "NUM_WORKERS=0" in line
    assert "Traceback" not in ended.log
    found = re.search(r"ended at step (\d); newest checkpoint: step (\d)", ended.log)
    assert found is not None and found[1] == found[2] >= "1", ended.log
    assert_goes_on(job, int(found[1]), undisturbed)


@TRAINERS
def test_a_device_that_runs_out_of_memory_ends_the_job_with_78_and_costs_no_step(
    trainer: str, job: ForkedJobRunner, undisturbed: Outcome
) -> None:
    job = job.with_(TRAINER=trainer, NUM_WORKERS="1")
    place = "app.model.loss.LossFunction.__call__"
    ended = job.preceded_by(at, place, 8, run_out_of_memory).run("train")  # the end of step 4
    assert ended.code == 78, ended.log
    (line,) = errors(ended)
    for part in ("2.00 GiB asked for", "70.50 GiB held", "79.11 GiB", "BATCH_SIZE (now 2"):
        assert part in line
    assert "Traceback" not in ended.log
    assert_goes_on(job, 3, undisturbed)


@TRAINERS
def test_a_bug_while_workers_live_ends_the_process_with_1_and_costs_no_step(
    trainer: str, job: ForkedJobRunner, undisturbed: Outcome
) -> None:
    job = job.with_(TRAINER=trainer, NUM_WORKERS="2")
    ended = in_step(job, 3, a_bug).run("train")
    assert ended.code == 1, ended.log
    assert "ZeroDivisionError: a bug in the loop" in ended.log
    # Its row was not written: it is the only thing that is missing.
    assert "ended at step 3; newest checkpoint: step 3" in ended.log


@TRAINERS
def test_weights_that_are_half_moved_are_not_committed(
    trainer: str, job: ForkedJobRunner, undisturbed: Outcome
) -> None:
    job = job.with_(TRAINER=trainer, CHECKPOINT_EVERY_STEPS="2")
    second_half_of_step_4 = 8  # it moves the matrices first, and then the norms
    ended = job.preceded_by(at, "torch.optim.adam.adam", second_half_of_step_4, a_bug).run("train")
    assert ended.code == 1, ended.log
    assert "it ended in the middle of an update: step 3 is not whole" in ended.log
    assert_goes_on(job, 2, undisturbed)


def test_a_training_that_hangs_is_ended_with_75_and_says_where_each_thread_is(
    job: ForkedJobRunner, undisturbed: Outcome
) -> None:
    job = job.with_(CHECKPOINT_EVERY_STEPS="2", NUM_WORKERS="1")
    ended = in_step(job, 5, hang).with_(HANG_SECONDS="10").run("train")
    assert ended.code == 75, ended.log
    (line,) = errors(ended)
    assert "no micro-step, save or data for" in line and "HANG_SECONDS=10" in line
    assert "in hang\n" in ended.log and "saver.py" in ended.log
    assert_goes_on(job, 4, undisturbed)


def test_a_process_that_is_stuck_is_gone_when_its_grace_is_over(
    job: ForkedJobRunner, undisturbed: Outcome
) -> None:
    job = job.with_(CHECKPOINT_EVERY_STEPS="2", NUM_WORKERS="2")
    stuck = in_step(job, 5, hang_with_a_stopped_worker).with_(GRACE_SECONDS="6")
    ended = stuck.signal_when("it hangs now", signal.SIGTERM, "train")
    assert ended.code == 143, ended.log
    (line,) = errors(ended)
    assert "GRACE_SECONDS=6" in line
    assert_goes_on(job, 4, undisturbed)


@TRAINERS
def test_sigterm_while_a_worker_hangs_commits_the_step(
    trainer: str, job: ForkedJobRunner, undisturbed: Outcome
) -> None:
    job = job.with_(TRAINER=trainer, NUM_WORKERS="1", TOTAL_STEPS="60")
    stopped = functools.partial(kill_a_worker, signal.SIGSTOP)
    ended = in_step(job, 1, stopped).signal_when("step 1/60", signal.SIGTERM, "train")
    assert ended.code == 143, ended.log
    assert re.search(r"stopped at step (\d) of 60; newest checkpoint: step \1;", ended.log)
    assert newest_checkpoint(Path(job.environment["CHECKPOINT_URI"][7:]) / "tiny")
