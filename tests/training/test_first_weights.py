"""INIT_FROM: needed for a fresh start, and never again."""

import shutil
import signal
from pathlib import Path
from unittest.mock import Mock

import pytest

from app.training.attempt import Attempt
from app.training.preemption import Interrupted
from tests.support.job import newest_checkpoint
from tests.support.train_command import Job, Train, assert_refused

# The tokenizer is that of the first weights.
FROM = {"MODEL": "", "TOKENIZER": "", "RUN_NAME": "mine"}


@pytest.fixture
def begin(train: Train, tmp_path: Path) -> Path:
    """A folder with weights and their tokenizer."""
    assert train(TOTAL_STEPS="1", CHECKPOINT_URI=f"file://{tmp_path}/first")[0] == 0
    folder = tmp_path / "begin"
    shutil.copytree(newest_checkpoint(tmp_path / "first/tiny"), folder)
    (folder / "state.json").unlink()
    return folder


def _changed(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4] + b"\0\0\0\0")
    assert weights.read_bytes() != content


@pytest.mark.parametrize("place", ["volume", "s3"])
def test_a_run_goes_on_whatever_became_of_its_first_weights(
    place: str, train: Train, begin: Path, bucket: str, tmp_path: Path
) -> None:
    uri = f"s3://{bucket}/x" if place == "s3" else f"file://{tmp_path}/store"
    begun = {**FROM, "INIT_FROM": str(begin), "CHECKPOINT_URI": uri, "TOTAL_STEPS": "1"}
    code, log = train(**begun)
    assert code == 0 and f"weights from {begin}" in log, log
    moved = begin.rename(tmp_path / "moved")
    for number, there in enumerate([str(begin), str(moved), "", f"{tmp_path}/never"]):
        # A new node each time: the tokenizer too has to come from a checkpoint.
        again = begun | {"INIT_FROM": there, "DATA_DIR": f"{tmp_path}/node-{number}"}
        code, log = train(**again, ADDITIONAL_STEPS="1", EXTENSION_ID=str(number))
        assert code == 0 and f"resumed from step {number + 1} " in log, log
        assert ("the run goes on without it" in log) == (there == f"{tmp_path}/never")


@pytest.mark.parametrize("place", ["volume", "s3"])
def test_a_run_that_its_weights_named_is_not_left_behind_when_they_have_another_name(
    place: str, train: Train, begin: Path, bucket: str, tmp_path: Path
) -> None:
    uri = f"s3://{bucket}/x" if place == "s3" else f"file://{tmp_path}/store"
    begun = {**FROM, "RUN_NAME": "", "CHECKPOINT_URI": uri, "TOTAL_STEPS": "1"}
    assert train(**begun, INIT_FROM=str(begin))[0] == 0
    moved = str(begin.rename(tmp_path / "moved"))
    again = {**begun, "ADDITIONAL_STEPS": "1"}
    way = "set RUN_NAME=begin to go on, or RUN_NAME="
    assert_refused(train(**again, INIT_FROM=moved), 78, f"{way}moved to begin another run")
    assert_refused(train(**again, INIT_FROM=""), 78, f"{way}tiny to begin another run")
    code, log = train(**again | {"RUN_NAME": "begin"}, INIT_FROM=moved)
    assert code == 0 and "resumed from step 1 " in log, log
    code, log = train(**again | {"RUN_NAME": "moved"}, INIT_FROM=moved)
    assert code == 0 and "resumed" not in log, log


@pytest.mark.parametrize("there", ["removed", "unset"])
def test_tokens_are_made_and_shown_whatever_became_of_the_first_weights(
    there: str, train: Train, job: Job, begin: Path, tmp_path: Path
) -> None:
    begun = {**FROM, "INIT_FROM": str(begin), "TOTAL_STEPS": "1"}
    assert train(**begun)[0] == 0
    shown = job(["data", "show", "--step", "1"], **begun)
    assert shown[0] == 0 and shown[1], shown
    shutil.rmtree(begin)
    again = begun | {"INIT_FROM": str(begin) if there == "removed" else ""}
    again |= {"SEQ_LEN": "", "DATA_DIR": f"{tmp_path}/node"}
    assert job(["prepare"], **again)[0] == 0
    assert job(["data", "show", "--step", "1"], **again | {"SEQ_LEN": "32"})[:2] == shown[:2]
    assert job(["data", "stats"], **again)[0] == 0


def test_tokens_are_made_though_the_folder_of_the_tokenizer_is_lost(
    job: Job, job_environment: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(job_environment["TOKENIZER"], folder)
    begun = {"TOTAL_STEPS": "1", "TOKENIZER": str(folder)}
    assert job(["train"], **begun)[0] == 0
    shutil.rmtree(folder)
    for command in (["prepare"], ["data", "stats"]):
        code, _, log = job(command, **begun, DATA_DIR=f"{tmp_path}/node")
        assert code == 0 and "the tokenizer in the run's newest checkpoint is used" in log, log


def test_other_weights_begin_a_run_beside_one_that_its_weights_named(
    train: Train, begin: Path, tmp_path: Path
) -> None:
    begun = {**FROM, "RUN_NAME": "", "TOTAL_STEPS": "1"}
    assert train(**begun, INIT_FROM=str(begin))[0] == 0
    assert train(TOTAL_STEPS="1")[0] == 0  # MODEL is named, so no run of INIT_FROM is meant
    other = tmp_path / "other"
    shutil.copytree(begin, other)
    _changed(other)
    assert train(**begun, INIT_FROM=str(other))[0] == 0
    assert {path.name for path in (tmp_path / "store").iterdir()} == {"begin", "other", "tiny"}


def test_other_weights_that_are_there_are_refused(
    train: Train, begin: Path, tmp_path: Path
) -> None:
    begun = {**FROM, "TOTAL_STEPS": "1"}
    assert train(**begun, INIT_FROM=str(begin))[0] == 0
    other = tmp_path / "other"
    shutil.copytree(begin, other)
    _changed(other)
    refused = train(**begun, INIT_FROM=str(other))
    assert_refused(refused, 78, f"INIT_FROM was '{begin}', is '{other}'")


def test_a_run_of_a_preset_refuses_weights_that_are_there(train: Train, begin: Path) -> None:
    assert train(TOTAL_STEPS="1", RUN_NAME="mine")[0] == 0
    refused = train(TOTAL_STEPS="1", RUN_NAME="mine", MODEL="", INIT_FROM=str(begin))
    assert_refused(refused, 78, "INIT_FROM was None")


def test_before_there_is_a_checkpoint_the_weights_have_to_be_the_recorded_ones(
    train: Train, begin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = {**FROM, "TOTAL_STEPS": "1"}
    with monkeypatch.context() as patch:
        patch.setattr(Attempt, "begin", Mock(side_effect=Interrupted(signal.SIGTERM)))
        assert train(**begun, INIT_FROM=str(begin))[0] == 143
    aside = begin.rename(tmp_path / "aside")
    assert_refused(train(**begun, INIT_FROM=str(begin)), 78, "there is no such directory")
    shutil.copytree(aside, begin)
    _changed(begin)
    assert_refused(train(**begun, INIT_FROM=str(begin)), 78, f"INIT_FROM '{begin}' changed its")
    code, log = train(**begun, INIT_FROM=str(aside))
    assert code == 0 and f"weights from {aside}" in log, log
