"""Whole jobs whose tokens arrive while they train end as one that had them all before."""

import json
import signal
from pathlib import Path

import pytest

from tests.support.forked_job import ForkedJobRunner, signal_in_step
from tests.support.job import assert_same_checkpoint, losses, newest_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("late tokens")]

ROWS = [f"row {i}: " + "words that are counted " * (i % 5) for i in range(70)]
LATE = "tests.support.late_tokens"


@pytest.fixture(scope="module")
def environment(
    job_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """14 steps over a corpus of fewer; the window is 2 steps, a shard not much more."""
    corpus = tmp_path_factory.mktemp("rows") / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": row}) + "\n" for row in ROWS))
    return {
        **job_environment,
        "DATASET": str(corpus),
        "TRAINER": "torch",
        "TOTAL_STEPS": "14",
        "CHECKPOINT_EVERY_STEPS": "3",
    }


def late(environment: dict[str, str], folder: Path, **changes: str) -> ForkedJobRunner:
    places = {"CHECKPOINT_URI": f"file://{folder}/store", "DATA_DIR": f"{folder}/data"}
    return ForkedJobRunner({**environment, **places, **changes}, module=LATE)


@pytest.fixture(scope="module")
def patient(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never disturbed."""
    folder = tmp_path_factory.mktemp("patient")
    finished = late(environment, folder).run("train")
    assert finished.code == 0, finished.log
    assert "so far" in finished.log and "data complete" in finished.log
    return folder / "store" / "tiny"


@pytest.mark.parametrize(
    ("trainer", "workers"), [("torch", "0"), ("torch", "2"), ("lightning", "1")]
)
def test_killed_while_tokens_arrive_it_ends_with_the_same_bits(
    trainer: str, workers: str, patient: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    job = late(environment, tmp_path, TRAINER=trainer, NUM_WORKERS=workers)
    first = job.preceded_by(signal_in_step, 5, signal.SIGKILL).run("train")
    assert first.code == -signal.SIGKILL
    assert "data complete" not in first.log
    second = job.run("train")
    assert second.code == 0, second.log
    assert "resumed from step 3" in second.log
    run = tmp_path / "store" / "tiny"
    assert_same_checkpoint(newest_checkpoint(patient), newest_checkpoint(run))
    assert losses(run) == losses(patient)


def test_resumed_on_a_node_without_tokens_it_ends_with_the_same_bits(
    patient: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    job = late(environment, tmp_path)
    first = job.preceded_by(signal_in_step, 8, signal.SIGKILL).run("train")
    assert first.code == -signal.SIGKILL
    second = job.with_(DATA_DIR=str(tmp_path / "another")).run("train")
    assert second.code == 0, second.log
    run = tmp_path / "store" / "tiny"
    assert_same_checkpoint(newest_checkpoint(patient), newest_checkpoint(run))


def test_tokens_that_were_there_before_make_the_same_bits(
    patient: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    job = late(environment, tmp_path)
    first = job.with_(TOTAL_STEPS="14", RUN_NAME="other").run("train")
    assert first.code == 0, first.log
    second = job.run("train")
    assert "so far" not in second.log
    run = tmp_path / "store" / "tiny"
    assert_same_checkpoint(newest_checkpoint(patient), newest_checkpoint(run))


@pytest.mark.parametrize("trainer", ["torch", "lightning"])
def test_a_disk_that_fills_up_behind_the_training_ends_it_in_order(
    trainer: str, environment: dict[str, str], tmp_path: Path
) -> None:
    job = late(
        environment, tmp_path, TRAINER=trainer, LATE_TOKENS="fail", CHECKPOINT_EVERY_STEPS="4"
    )
    ended = job.run("train")
    assert ended.code == 75, ended.log
    assert f"DATA_DIR={tmp_path}/data is full" in ended.log
    step = losses(tmp_path / "store" / "tiny")[-1][0]
    assert step > 3
    assert f"step-{step:010d}" in newest_checkpoint(tmp_path / "store" / "tiny").name
    continued = job.with_(LATE_TOKENS="").run("train")
    assert continued.code == 0, continued.log
    assert f"resumed from step {step} " in continued.log


@pytest.mark.parametrize("trainer", ["torch", "lightning"])
def test_sigterm_while_it_waits_for_tokens_commits_the_step_and_exits_143(
    trainer: str, environment: dict[str, str], tmp_path: Path
) -> None:
    job = late(
        environment, tmp_path, TRAINER=trainer, LATE_TOKENS="never", CHECKPOINT_EVERY_STEPS="4"
    )
    stopped = job.signal_when("the source hangs", signal.SIGTERM, "train")
    assert stopped.code == 143, stopped.log
    step = losses(tmp_path / "store" / "tiny")[-1][0]
    assert step > 3
    assert f"stopped at step {step} of 14; newest checkpoint: step {step}" in stopped.log
