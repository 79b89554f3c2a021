"""Whatever becomes of the terminal, the pipe or the disk of the log: training goes on, and the exit
code is that of the run."""

import contextlib
import os
import pty
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from app.run.view import read_view
from app.stores.opening import open_store
from tests.support.forked_job import ForkedJobRunner, at
from tests.support.six_steps import SIX_STEPS

pytestmark = pytest.mark.slow
LOG_ROW = "app.training.step_log.StepLog.log_row"


@pytest.fixture
def job(job_environment: dict[str, str], tmp_path: Path) -> ForkedJobRunner:
    uri = f"file://{tmp_path}/store"
    return ForkedJobRunner({**job_environment, **SIX_STEPS, "CHECKPOINT_URI": uri})


def newest_step(job: ForkedJobRunner) -> int:
    return read_view(open_store(job.environment["CHECKPOINT_URI"], "tiny")).newest_step


def point(descriptor: int) -> None:
    """Let stdout and stderr go there."""
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.close(descriptor)


def log_to_a_full_disk() -> None:
    point(os.open("/dev/full", os.O_WRONLY))


def log_nowhere() -> None:
    for number in (0, 1, 2):
        os.close(number)


def log_to_a_pipe_that_nobody_reads() -> None:
    _, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writer, bytes(4096)):
            pass
    os.set_blocking(writer, True)
    point(writer)


def log_to_a_reader_who_goes(signalled: bool = False) -> None:
    reader, writer = os.pipe()
    point(writer)
    at(LOG_ROW, 3, lambda: gone(reader, signalled))


def log_to_a_terminal_that_hangs_up(signalled: bool = False) -> None:
    master, terminal = pty.openpty()
    os.set_blocking(terminal, False)  # nobody reads what it shows
    point(terminal)
    at(LOG_ROW, 3, lambda: gone(master, signalled))


def gone(descriptor: int, signalled: bool) -> None:
    os.close(descriptor)
    if signalled:
        os.kill(os.getpid(), signal.SIGHUP)


@pytest.mark.parametrize("trainer", ["lightning", "torch"])
@pytest.mark.parametrize(
    "lose",
    [
        log_to_a_full_disk,
        log_nowhere,
        log_to_a_pipe_that_nobody_reads,
        log_to_a_reader_who_goes,
        log_to_a_terminal_that_hangs_up,
    ],
)
def test_a_log_that_is_lost_costs_nothing(
    lose: Callable[..., None], trainer: str, job: ForkedJobRunner
) -> None:
    ended = job.with_(TRAINER=trainer).preceded_by(lose).run("train")
    assert ended.code == 0, ended.log
    assert newest_step(job) == 6


@pytest.mark.parametrize("lose", [log_to_a_reader_who_goes, log_to_a_terminal_that_hangs_up])
def test_a_hangup_that_takes_the_log_along_commits_the_step(
    lose: Callable[..., None], job: ForkedJobRunner
) -> None:
    ended = job.with_(CHECKPOINT_EVERY_STEPS="100").preceded_by(lose, True).run("train")
    assert ended.code == 143, ended.log
    assert newest_step(job) == 3
