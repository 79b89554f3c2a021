"""Several processes on one machine: the same run as one, and what happens to it when one of them is
killed, paused or asked to stop.

With PROCESS_KILLS=60 the kills at random instants go on for an hour, and runs have 50 steps.
"""

import contextlib
import dataclasses
import os
import random
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.job import JobProcess, JobRunner, Outcome, outcome
from tests.support.process_runs import (
    STEPS,
    Disturbance,
    in_bucket,
    job,
    losses,
    newest_step,
    steps_in,
    store_of,
    undisturbed,
    variables_of_run,
)
from tests.support.processes import wait_until_gone

__all__ = ["job", "undisturbed", "variables_of_run"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SEED = 20_261_128
KILLS = int(os.environ.get("PROCESS_KILLS", "2"))
LONG = KILLS >= 60


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_several_processes_make_the_run_of_one_and_both_trainers_the_same_bits(
    processes: int, job: JobRunner, undisturbed: Callable[..., Outcome]
) -> None:
    """8 sequences over 3 processes too: in the last micro-step two of them have none left. Over 4
    the second micro-step is nobody's."""
    steps = {"TOTAL_STEPS": "50"} if LONG else {}
    one, several = undisturbed(1, **steps), undisturbed(processes, **steps)
    assert losses(several) == pytest.approx(losses(one), rel=1e-5)
    assert losses(one)[-1] < losses(one)[0] - 0.1  # it did train
    finished = job.with_(TRAINER="lightning", DEVICES=str(processes), **steps).run("train")
    assert finished.code == 0, finished.log
    assert outcome(store_of(job)).differences(several) == []


def test_a_validation_loss_is_the_same_for_every_number_of_processes(
    job: JobRunner, tmp_path: Path
) -> None:
    job = job.with_(VAL_EVERY_STEPS="2", VAL_TOKENS="256", TOTAL_STEPS="2", BATCH_SIZE="1")
    job = job.with_(DATASET=str(_longer_text(tmp_path)))
    found = []
    for processes in ("1", "3"):
        uri = f"file://{tmp_path}/{processes}"
        finished = job.with_(DEVICES=processes, CHECKPOINT_URI=uri).run("train")
        assert finished.code == 0, finished.log
        found += [float(loss) for loss in re.findall(r"val loss ([\d.]+)", finished.log)]
    assert len(found) == 4, "after the first step and the second"
    assert found[:2] == pytest.approx(found[2:], abs=2e-4)


def _longer_text(folder: Path) -> Path:
    path = folder / "long.txt"
    path.write_text("\n\n".join(f"Line {number} of a longer text." for number in range(4000)))
    return path


def test_a_run_goes_on_with_another_number_of_processes(
    job: JobRunner, undisturbed: Callable[..., Outcome]
) -> None:
    for processes, step in (("3", 5), ("1", 12), ("2", STEPS)):
        with_ = job.with_(DEVICES=processes)
        if step == STEPS:
            assert with_.run("train").code == 0
        else:
            stopped = with_.signal_when(f" step {step}/{STEPS} ", signal.SIGTERM, "train")
            assert stopped.code == 143, stopped.log
    assert losses(outcome(store_of(job))) == pytest.approx(losses(undisturbed(1)), rel=1e-5)


def test_a_killed_run_goes_on_with_another_number_of_processes(
    job: JobRunner, undisturbed: Callable[..., Outcome]
) -> None:
    job = job.with_(DEVICES="3")
    kill = Disturbance(signal.SIGKILL, 1)
    killed = job.run("train", when={f" step 11/{STEPS} ": kill})
    assert killed.code == 75, killed.log
    finished = job.with_(DEVICES="2", TRAINER="lightning").run("train")
    assert finished.code == 0, finished.log
    assert steps_in(finished.log)[0] == newest_step_in(killed.log) + 1
    assert losses(outcome(store_of(job))) == pytest.approx(losses(undisturbed(1)), rel=1e-5)


def newest_step_in(log: str) -> int:
    return max(int(step) for step in re.findall(r"checkpoint step (\d+) saved", log))


@pytest.mark.parametrize(("trainer", "rank"), [("torch", 0), ("lightning", 1)])
def test_a_killed_process_costs_the_step_in_progress_and_no_bit(
    trainer: str, rank: int, job: JobRunner, undisturbed: Callable[..., Outcome]
) -> None:
    job = job.with_(DEVICES="3", TRAINER=trainer)
    kill = Disturbance(signal.SIGKILL, rank)
    killed = job.run("train", when={f" step 11/{STEPS} ": kill})
    assert killed.code == 75, killed.log
    kill.assert_over(killed, 20)
    assert f"rank {rank} was killed by SIGKILL" in killed.log
    assert newest_step(job) >= steps_in(killed.log)[-1], killed.log
    finished = job.run("train")
    assert finished.code == 0, finished.log
    assert outcome(store_of(job)).differences(undisturbed(3)) == []


def test_where_rank_0_dies_another_takes_its_lease_in_a_bucket_after_its_silence(
    job: JobRunner, bucket: str, s3_server: str, undisturbed: Callable[..., Outcome]
) -> None:
    """With processes that load data too: they have the connections of those that forked them."""
    job = job.with_(CHECKPOINT_URI=f"s3://{bucket}", AWS_ENDPOINT_URL_S3=s3_server)
    job = job.with_(DEVICES="3", NUM_WORKERS="1")
    kill = Disturbance(signal.SIGKILL, 0)
    killed = job.run("train", when={f" step 11/{STEPS} ": kill})
    assert killed.code == 75, killed.log
    assert killed.log.count("rank 0 is gone: this process commits step") == 1, killed.log
    assert newest_step(job) >= steps_in(killed.log)[-1], killed.log
    finished = job.run("train")
    assert finished.code == 0, finished.log
    assert outcome(store_of(job)).differences(undisturbed(3)) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_hangs_is_left_behind_after_peer_timeout(
    rank: int, job: JobRunner, undisturbed: Callable[..., Outcome]
) -> None:
    job = job.with_(DEVICES="3")
    pause = Disturbance(signal.SIGSTOP, rank)
    ended = job.run("train", when={f" step 11/{STEPS} ": pause})
    assert ended.code == 75, ended.log
    pause.assert_over(ended, 40)
    assert newest_step(job) >= steps_in(ended.log)[-1], ended.log
    finished = job.run("train")
    assert finished.code == 0, finished.log
    assert outcome(store_of(job)).differences(undisturbed(3)) == []


@pytest.mark.parametrize(
    "stop",
    [
        Disturbance(signal.SIGTERM, launcher=True),
        Disturbance(signal.SIGTERM, 2),
        Disturbance(signal.SIGTERM, 0, 1, 2, launcher=True),
    ],
    ids=["the launcher", "one of them", "all of them"],
)
def test_a_signal_to_any_of_them_stops_all_after_the_same_step(
    stop: Disturbance, job: JobRunner, undisturbed: Callable[..., Outcome]
) -> None:
    job = job.with_(DEVICES="3")
    stopped = job.run("train", when={f" step 5/{STEPS} ": stop})
    assert stopped.code == 143, stopped.log
    stop.assert_over(stopped, 60)
    assert newest_step(job) == steps_in(stopped.log)[-1], stopped.log
    finished = job.run("train")
    assert finished.code == 0, finished.log
    assert outcome(store_of(job)).differences(undisturbed(3)) == []


def test_where_rank_0_dies_in_its_last_commit_another_makes_it(
    job: JobRunner, undisturbed: Callable[..., Outcome]
) -> None:
    job = job.with_(DEVICES="2")
    stop = Disturbance(signal.SIGTERM, launcher=True)
    kill = Disturbance(signal.SIGKILL, 0)
    when = {f" step 5/{STEPS} ": stop, "asked to stop: committing step": kill}
    stopped = job.run("train", when=when)
    assert stopped.code == 75, stopped.log
    kill.assert_over(stopped, 60)
    assert newest_step(job) == steps_in(stopped.log)[-1], stopped.log
    finished = job.run("train")
    assert finished.code == 0, finished.log
    assert outcome(store_of(job)).differences(undisturbed(2)) == []


def test_a_signal_before_the_others_have_come_ends_all_with_143(job: JobRunner) -> None:
    stop = Disturbance(signal.SIGTERM, launcher=True)
    stopped = job.with_(DEVICES="3").run("train", when={"first tokens ready": stop})
    assert stopped.code == 143, stopped.log
    assert stopped.log.count("nothing new to save") == 1, stopped.log
    stop.assert_over(stopped, 60)


def test_a_launcher_that_is_killed_leaves_no_process_and_no_step_behind(
    job: JobRunner, undisturbed: Callable[..., Outcome]
) -> None:
    job = job.with_(DEVICES="2")
    kill = Disturbance(signal.SIGKILL, launcher=True)
    killed = job.run("train", when={f" step 5/{STEPS} ": kill})
    assert killed.code == -signal.SIGKILL
    assert wait_until_gone(kill.workers, 60) == []
    assert newest_step(job) == steps_in(killed.log)[-1], killed.log
    assert job.run("train").code == 0
    assert outcome(store_of(job)).differences(undisturbed(2)) == []


def test_what_is_wrong_is_said_once_and_before_the_others_are_started(
    job: JobRunner, tmp_path: Path
) -> None:
    refused = job.with_(DEVICES="3", DATASET=f"{tmp_path}/none.txt").run("train")
    assert refused.code == 78, refused.log
    assert refused.log.count("none.txt") == 1
    assert not (tmp_path / "store").exists() or newest_step(job) == 0


def test_a_finished_run_starts_no_other_process(job: JobRunner) -> None:
    job = job.with_(DEVICES="2", TOTAL_STEPS="1")
    assert job.run("train").code == 0
    again = job.run("train")
    assert again.code == 0, again.log
    assert "nothing to do" in again.log


def test_torchruns_workers_make_the_same_run_and_find_it_finished(
    job: JobRunner, undisturbed: Callable[..., Outcome]
) -> None:
    torchrun = dataclasses.replace(job, module="torch.distributed.run")
    # Without these it asks for the name of this machine, which a container without network has not.
    here = ("--local-addr", "127.0.0.1", "--master-addr", "127.0.0.1")
    arguments = (*here, "--nproc-per-node", "2", "-m", "app", "train")
    finished = torchrun.run(*arguments)
    assert finished.code == 0, finished.log
    assert finished.log.count("started by torchrun: it ends with 1 whatever") == 1
    assert outcome(store_of(job)).differences(undisturbed(2)) == []
    again = torchrun.run(*arguments)
    assert again.code == 0, again.log
    assert again.log.count("nothing to do") == 1


@pytest.mark.parametrize("number", range(KILLS))
def test_a_kill_at_a_random_instant_leaves_a_run_that_ends_with_the_same_bits(
    number: int,
    job: JobRunner,
    undisturbed: Callable[..., Outcome],
    request: pytest.FixtureRequest,
) -> None:
    """Of each kind of store, and with both trainers, the same number of times."""
    chosen = random.Random(SEED + number)
    trainer, rank = ("torch", "lightning")[number // 2 % 2], chosen.randrange(3)
    if number % 2:
        job = in_bucket(job, request)
    deed = chosen.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP])
    job = job.with_(DEVICES="3", TRAINER=trainer)
    act = Disturbance(deed, rank)
    after = chosen.uniform(0, 12)  # seconds: joining and the first steps fall into it

    def later(process: JobProcess) -> None:
        timer = threading.Timer(after, _unless_over, (act, process))
        timer.daemon = True
        timer.start()

    ended = job.run("train", when={"fresh start": later})
    assert ended.code in (0, 75), ended.log
    if act.workers:
        act.assert_over(ended, 60)
    made = steps_in(ended.log)
    assert newest_step(job) >= (made[-1] if made else 0), ended.log
    if ended.code != 0:
        finished = job.run("train")
        assert finished.code == 0, finished.log
    assert outcome(store_of(job)).differences(undisturbed(3)) == []


def _unless_over(act: Disturbance, process: JobProcess) -> None:
    # The run may be faster, or that rank may not have come yet.
    with contextlib.suppress(KeyError, ProcessLookupError):
        act(process)
