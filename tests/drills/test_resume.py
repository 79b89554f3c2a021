"""Killed and continued equals never killed: real processes, zero tolerance."""

import functools
import os
import signal
from pathlib import Path

import pytest

from app.stores.opening import open_store
from tests.support.forked_job import ForkedJobRunner, at, signal_in_step
from tests.support.job import JobRunner, assert_same_checkpoint, losses, newest_checkpoint
from tests.support.stored_run import stored_attempts

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("resume")]


def job(job_environment: dict[str, str], store: Path, trainer: str) -> ForkedJobRunner:
    return ForkedJobRunner(
        {
            **job_environment,
            "CHECKPOINT_URI": f"file://{store}",
            "TRAINER": trainer,
            "TOTAL_STEPS": "12",
            "CHECKPOINT_EVERY_STEPS": "3",
        }
    )


@pytest.fixture(scope="module")
def straight(
    job_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """An uninterrupted run of each trainer."""
    runs = {}
    for trainer in ("lightning", "torch"):
        store = tmp_path_factory.mktemp(f"straight-{trainer}")
        finished = job(job_environment, store, trainer).run("train")
        assert finished.code == 0, finished.log
        runs[trainer] = store / "tiny"
    return runs


@pytest.mark.parametrize("trainer", ["lightning", "torch"])
def test_a_run_killed_in_the_middle_ends_with_the_same_bits(
    trainer: str, straight: dict[str, Path], job_environment: dict[str, str], tmp_path: Path
) -> None:
    begun = job(job_environment, tmp_path, trainer)
    first = begun.preceded_by(signal_in_step, 8, signal.SIGKILL).run("train")
    assert first.code == -signal.SIGKILL
    second = JobRunner(begun.environment).run("train")
    assert second.code == 0, second.log
    assert "resumed from step 6" in second.log
    # The data turn over on the way, inside a step: the order goes on from the step's number.
    assert "epoch 2 begins at step 7\n" in second.log
    run = tmp_path / "tiny"
    assert_same_checkpoint(newest_checkpoint(straight[trainer]), newest_checkpoint(run))
    assert losses(run) == losses(straight[trainer])
    assert [step for step, _, _ in losses(run)] == list(range(1, 13))


def test_both_trainers_make_the_same_weights_bit_for_bit(straight: dict[str, Path]) -> None:
    assert_same_checkpoint(
        newest_checkpoint(straight["lightning"]), newest_checkpoint(straight["torch"])
    )
    assert losses(straight["lightning"]) == losses(straight["torch"])


def test_one_trainer_continues_the_others_run_bit_for_bit(
    straight: dict[str, Path], job_environment: dict[str, str], tmp_path: Path
) -> None:
    begun = job(job_environment, tmp_path, "torch")
    stopped = begun.preceded_by(signal_in_step, 5, signal.SIGTERM).run("train")
    assert stopped.code == 143, stopped.log
    finished = job(job_environment, tmp_path, "lightning").run("train")
    assert finished.code == 0, finished.log
    assert_same_checkpoint(
        newest_checkpoint(straight["lightning"]), newest_checkpoint(tmp_path / "tiny")
    )


@pytest.fixture(scope="module")
def whole_under_muon(
    job_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An uninterrupted run of Lightning's with OPTIMIZER=muon."""
    store = tmp_path_factory.mktemp("muon")
    finished = job(job_environment, store, "lightning").with_(OPTIMIZER="muon").run("train")
    assert finished.code == 0, finished.log
    return store / "tiny"


@pytest.mark.parametrize(("first", "second"), [("torch", "lightning"), ("lightning", "torch")])
def test_under_muon_too_one_trainer_ends_the_others_killed_run_with_the_same_bits(
    first: str,
    second: str,
    whole_under_muon: Path,
    job_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    begun = job(job_environment, tmp_path, first).with_(OPTIMIZER="muon")
    killed = begun.preceded_by(signal_in_step, 8, signal.SIGKILL).run("train")
    assert killed.code == -signal.SIGKILL
    finished = begun.with_(TRAINER=second).run("train")
    assert finished.code == 0, finished.log
    assert "resumed from step 6" in finished.log
    assert losses(tmp_path / "tiny") == losses(whole_under_muon)
    assert_same_checkpoint(
        newest_checkpoint(whole_under_muon), newest_checkpoint(tmp_path / "tiny")
    )


@pytest.mark.parametrize("trainer", ["lightning", "torch"])
def test_sigterm_commits_the_step_and_exits_143(
    trainer: str, job_environment: dict[str, str], tmp_path: Path
) -> None:
    begun = job(job_environment, tmp_path, trainer)
    stopped = begun.preceded_by(signal_in_step, 4, signal.SIGTERM).run("train")
    assert stopped.code == 143, stopped.log
    assert newest_checkpoint(tmp_path / "tiny").name.startswith("step-0000000004")
    assert "stopped at step 4 of 12; newest checkpoint: step 4" in stopped.log


@pytest.mark.parametrize(
    ("trainer", "number"), [("lightning", signal.SIGINT), ("torch", signal.SIGTERM)]
)
def test_a_signal_to_the_whole_group_is_the_jobs_and_not_its_workers(
    trainer: str,
    number: signal.Signals,
    straight: dict[str, Path],
    job_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    runner = job(job_environment, tmp_path, trainer).with_(NUM_WORKERS="2")
    to_all = functools.partial(os.killpg, 0, number)
    stopped = runner.preceded_by(at, "app.training.step_log.StepLog.log_row", 4, to_all).run(
        "train"
    )
    assert stopped.code == 143, stopped.log
    assert "stopped at step 4 of 12; newest checkpoint: step 4" in stopped.log
    finished = runner.run("train")
    assert finished.code == 0, finished.log
    assert "resumed from step 4 " in finished.log
    assert_same_checkpoint(
        newest_checkpoint(straight[trainer]), newest_checkpoint(tmp_path / "tiny")
    )
    assert losses(tmp_path / "tiny") == losses(straight[trainer])


def test_an_extension_is_applied_once_however_often_it_starts(
    job_environment: dict[str, str], tmp_path: Path
) -> None:
    original = job(job_environment, tmp_path, "torch").with_(TOTAL_STEPS="4")
    assert original.run("train").code == 0

    extended = original.with_(ADDITIONAL_STEPS="5", EXTENSION_ID="job-1")
    killed = extended.preceded_by(signal_in_step, 7, signal.SIGKILL).run("train")
    assert "extended from step 4 to step 9" in killed.log
    continued = extended.run("train")
    assert continued.code == 0, continued.log
    assert "resumed from step 6" in continued.log and "target reached: step 9 of 9" in continued.log
    again = extended.run("train")
    assert again.code == 0
    assert "nothing to do: tiny is finished at step 9" in again.log
    assert [step for step, _, _ in losses(tmp_path / "tiny")] == list(range(1, 10))


def test_an_unfinished_run_that_an_id_extends_has_the_bits_of_a_finished_one(
    job_environment: dict[str, str], tmp_path: Path
) -> None:
    """It is killed before and after, and goes on through its original target."""
    (tmp_path / "at-once").mkdir()
    (tmp_path / "afterwards").mkdir()
    extension = {"ADDITIONAL_STEPS": "5", "EXTENSION_ID": "job-1"}
    original = job(job_environment, tmp_path / "at-once", "torch").with_(TOTAL_STEPS="8")
    assert original.preceded_by(signal_in_step, 4, signal.SIGKILL).run("train").code != 0
    at_once = original.with_(**extension)
    killed = at_once.preceded_by(signal_in_step, 7, signal.SIGKILL).run("train")
    assert "resumed from step 3" in killed.log
    assert "ADDITIONAL_STEPS=5: extended from step 8 to step 13" in killed.log, killed.log
    continued = at_once.run("train")
    assert "ADDITIONAL_STEPS=5 (EXTENSION_ID=job-1) is applied already" in continued.log
    assert "target reached: step 13 of 13" in continued.log, continued.log

    afterwards = job(job_environment, tmp_path / "afterwards", "torch").with_(TOTAL_STEPS="8")
    assert afterwards.run("train").code == 0
    assert "target reached: step 13 of 13" in afterwards.with_(**extension).run("train").log
    assert losses(tmp_path / "at-once/tiny") == losses(tmp_path / "afterwards/tiny")
    newest = [newest_checkpoint(tmp_path / name / "tiny") for name in ("at-once", "afterwards")]
    assert_same_checkpoint(*newest)


def test_without_an_id_each_start_after_a_finished_run_is_a_new_extension(
    job_environment: dict[str, str], tmp_path: Path
) -> None:
    original = job(job_environment, tmp_path, "torch").with_(TOTAL_STEPS="2")
    assert original.run("train").code == 0
    assert "nothing to do" in original.run("train").log
    extended = original.with_(ADDITIONAL_STEPS="2")
    assert "target reached: step 4 of 4" in extended.run("train").log
    assert "target reached: step 6 of 6" in extended.run("train").log


def test_a_start_that_takes_the_place_of_one_killed_at_its_end_does_not_extend_again(
    job_environment: dict[str, str], tmp_path: Path
) -> None:
    original = job(job_environment, tmp_path, "torch").with_(TOTAL_STEPS="2")
    assert original.run("train").code == 0
    extended = original.with_(ADDITIONAL_STEPS="2")
    killed = extended.preceded_by(kill_before_the_end_is_recorded).run("train")
    assert killed.code == -signal.SIGKILL and "target reached: step 4 of 4" in killed.log
    restarted = extended.run("train")
    assert restarted.code == 0, restarted.log
    assert "nothing to do: attempt 2 reached its target, step 4, and was killed" in restarted.log
    store = open_store(f"file://{tmp_path}", "tiny")
    ends = [attempt.ended for attempt in stored_attempts(store, newest=9)]
    assert ends == ["target reached", "target reached, then killed"]
    assert "extended from step 4 to step 6" in extended.run("train").log
    assert [step for step, _, _ in losses(tmp_path / "tiny")] == list(range(1, 7))


@pytest.mark.parametrize(
    ("killed", "started"),
    [
        ({}, {"ADDITIONAL_STEPS": "2"}),
        ({"ADDITIONAL_STEPS": "2"}, {"ADDITIONAL_STEPS": "3"}),
        ({"ADDITIONAL_STEPS": "2"}, {"ADDITIONAL_STEPS": "2", "EXTENSION_ID": "b"}),
        ({"ADDITIONAL_STEPS": "2", "EXTENSION_ID": "a"}, {"ADDITIONAL_STEPS": "2"}),
    ],
)
def test_a_start_that_asks_for_something_else_than_the_one_killed_at_its_end_extends(
    killed: dict[str, str],
    started: dict[str, str],
    job_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    original = job(job_environment, tmp_path, "torch").with_(TOTAL_STEPS="2")
    if killed:
        assert original.run("train").code == 0
    first = original.with_(**killed).preceded_by(kill_before_the_end_is_recorded).run("train")
    assert first.code == -signal.SIGKILL, first.log
    log = original.with_(**started).run("train").log
    assert "extended from step" in log and "target reached" in log, log


def kill_before_the_end_is_recorded() -> None:
    at("app.run.journal.AttemptJournal.end", 1, lambda: os.kill(os.getpid(), signal.SIGKILL))
