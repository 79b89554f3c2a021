"""Token shards that are cut while they are trained on end no process without a word."""

import json
import os
import signal
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from app.training.step_log import StepLog
from tests.support.forked_job import ForkedJobRunner
from tests.support.job import assert_same_checkpoint, losses, newest_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cut shards")]


@pytest.fixture(scope="module")
def environment(
    job_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    corpus = tmp_path_factory.mktemp("rows") / "corpus.jsonl"
    rows = [f"row {i}: " + "words that are counted " * (i % 5) for i in range(400)]
    corpus.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return {
        **job_environment,
        "DATASET": str(corpus),
        "TRAINER": "torch",
        "TOTAL_STEPS": "8",
        "CHECKPOINT_EVERY_STEPS": "100",
        "VAL_EVERY_STEPS": "4",
        "VAL_TOKENS": "256",
    }


def job(environment: dict[str, str], folder: Path, **changes: str) -> ForkedJobRunner:
    places = {"CHECKPOINT_URI": f"file://{folder}/store", "DATA_DIR": f"{folder}/data"}
    return ForkedJobRunner({**environment, **places, **changes})


def cut_shards_in_step(step: int, data_dir: Path, lost: Path | None = None) -> None:
    """In that step all shards lose their second half, and `lost` is removed."""
    original = StepLog.log_row

    def log_row(self: StepLog, made: int, *arguments: Any) -> None:
        if made == step:
            for path in data_dir.rglob("*.bin"):
                os.truncate(path, path.stat().st_size // 2)
            if lost:
                lost.unlink()
        original(self, made, *arguments)

    mock.patch.object(StepLog, "log_row", log_row).start()


@pytest.fixture(scope="module")
def whole(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    finished = job(environment, folder).run("train")
    assert finished.code == 0, finished.log
    return folder / "store" / "tiny"


@pytest.mark.parametrize(
    ("trainer", "workers"), [("torch", "0"), ("torch", "2"), ("lightning", "1")]
)
def test_shards_that_are_cut_while_training_are_made_again_and_it_ends_with_the_same_bits(
    trainer: str, workers: str, whole: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    runner = job(environment, tmp_path, TRAINER=trainer, NUM_WORKERS=workers)
    finished = runner.preceded_by(cut_shards_in_step, 2, tmp_path / "data").run("train")
    assert finished.code == 0, finished.log
    # The held-out tokens are of the same seal, and are made again with it.
    assert finished.log.count("made again from the source") == 1, finished.log
    run = tmp_path / "store" / "tiny"
    assert_same_checkpoint(newest_checkpoint(whole), newest_checkpoint(run))
    assert losses(run) == losses(whole)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_where_a_cut_shard_cannot_be_made_again_the_last_step_is_committed(
    workers: str, environment: dict[str, str], tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_bytes(Path(environment["DATASET"]).read_bytes())
    runner = job(environment, tmp_path, NUM_WORKERS=workers, DATASET=str(corpus))
    finished = runner.preceded_by(cut_shards_in_step, 2, tmp_path / "data", corpus).run("train")
    assert finished.code == 78, finished.log
    assert finished.code != -signal.SIGBUS
    assert "newest checkpoint: " in finished.log
    assert str(corpus) in finished.log.splitlines()[-1]
    made = newest_checkpoint(tmp_path / "store" / "tiny")
    assert f"ended at step {int(made.name[5:15])}; newest checkpoint" in finished.log
