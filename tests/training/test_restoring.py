"""What is restored is the newest checkpoint of this run, whatever else lies beside it."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.cli import parser as cli
from app.errors import AccessDenied, AppError, Unavailable
from app.stores.local import LocalStore
from tests.support.changed_checkpoint import change_state, change_tensors, copied_as
from tests.support.interposed import Interposed, failing_at
from tests.support.job import newest_checkpoint
from tests.support.train_command import Job, Train, assert_refused, error_lines

Change = Callable[[dict[str, torch.Tensor]], object]


def _checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:010d}-e000001"


def test_checkpoints_with_wrong_states_are_set_aside_one_after_the_other(
    train: Train, tmp_path: Path
) -> None:
    wrong: list[dict[str, Any]] = [
        {"step": 0},
        {"step": -2},
        {"step": 1_000_000},
        {"step": 2},
        {"tokens": 5},
        {"train_loss": "low"},
        {"versions": [3]},
        {"optimizer": {"learning_rate": "high"}},
        {"random": {}},
        {"run": None, "random": "none"},
    ]
    steps = {"TOTAL_STEPS": str(len(wrong) + 1), "CHECKPOINT_EVERY_STEPS": "1", "KEEP_TOP": "99"}
    assert train(**steps)[0] == 0
    run = tmp_path / "store/tiny"
    for number, change in enumerate(wrong):
        change_state(_checkpoint(run, number + 2), **change)
    code, log = train(**steps)
    assert code == 0, log
    assert "resumed from step 1 " in log and f"target reached: step {len(wrong) + 1}" in log
    assert len(error_lines(log)) == len(wrong) == len(list((run / "quarantine").iterdir()))
    assert all("DAMAGED CHECKPOINT" in line for line in error_lines(log))


_WEIGHTS, _MOMENTS = "model.safetensors", "optimizer.safetensors"
_NORM = "model.norm.weight"
_WRONG_TENSORS: list[tuple[str, Change]] = [
    (_WEIGHTS, lambda t: t[_NORM].fill_(math.nan)),
    (_WEIGHTS, lambda t: t.pop(_NORM)),
    (_WEIGHTS, lambda t: t.update(more=t[_NORM].clone())),
    (_WEIGHTS, lambda t: t.update({_NORM: t[_NORM][None].clone()})),
    (_WEIGHTS, lambda t: t.update({_NORM: t[_NORM].half()})),
    (_WEIGHTS, lambda t: t.update({_NORM: t[_NORM].double()})),
    (_MOMENTS, lambda t: t[f"exp_avg.{_NORM}"].fill_(math.inf)),
    (_MOMENTS, lambda t: t[f"exp_avg_sq.{_NORM}"].fill_(-1.0)),
    (_MOMENTS, lambda t: t[f"step.{_NORM}"].fill_(0.0)),
    (_MOMENTS, lambda t: t[f"step.{_NORM}"].fill_(1e6)),
    (_MOMENTS, lambda t: t.pop(f"step.{_NORM}")),
    (_MOMENTS, lambda t: [t.pop(name) for name in list(t) if name.startswith("exp_avg_sq")]),
    (_MOMENTS, lambda t: t.update({f"exp_avg.{_NORM}": t[f"exp_avg.{_NORM}"].bfloat16()})),
]


def test_checkpoints_with_wrong_tensors_are_set_aside_one_after_the_other(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train()[0] == 0
    run, count = tmp_path / "store/tiny", len(_WRONG_TENSORS)
    for number, (file, change) in enumerate(_WRONG_TENSORS):
        change_tensors(copied_as(_checkpoint(run, 4), 4, epoch=number + 2), file, change)
    store = f"file://{tmp_path}/store"
    assert cli.main(["checkpoints", "verify", "--checkpoint_uri", store]) == 78
    assert capsys.readouterr().out.count(" DAMAGED: ") == count
    code, log = train(ADDITIONAL_STEPS="2")
    assert code == 0, log
    assert "resumed from step 4 " in log and "target reached: step 6 of 6" in log
    assert len(error_lines(log)) == count == len(list((run / "quarantine").iterdir()))
    assert all("DAMAGED CHECKPOINT" in line for line in error_lines(log))


def test_other_tensors_in_a_checkpoint_that_does_not_say_its_run_are_refused(
    train: Train, tmp_path: Path
) -> None:
    assert train()[0] == 0
    newest = newest_checkpoint(tmp_path / "store/tiny")
    change_state(newest, run=None)
    change_tensors(newest, _WEIGHTS, lambda tensors: tensors.pop(_NORM))
    refused = train(ADDITIONAL_STEPS="2")
    assert_refused(refused, 78, "belongs to another model")
    assert not (tmp_path / "store/tiny/quarantine").exists()


def test_a_checkpoint_of_another_run_is_set_aside_and_its_own_resumed(
    train: Train, tmp_path: Path
) -> None:
    assert train(TOTAL_STEPS="6", KEEP_TOP="9")[0] == 0
    assert train(TOTAL_STEPS="6", KEEP_TOP="9", SEED="7", RUN_NAME="other")[0] == 0
    run, other = tmp_path / "store/tiny", tmp_path / "store/other"
    shutil.rmtree(_checkpoint(run, 6))
    shutil.copytree(_checkpoint(other, 6), _checkpoint(run, 6))
    code, log = train(TOTAL_STEPS="6")
    assert code == 0, log
    assert "it is of another run: SEED was 1337, is 7" in log and "resumed from step 4 " in log


@pytest.mark.parametrize("step", [6, 1_000_000])
def test_a_checkpoint_under_another_name_ends_no_run(
    step: int, train: Train, tmp_path: Path
) -> None:
    assert train(TOTAL_STEPS="6")[0] == 0
    run = tmp_path / "store/tiny"
    shutil.rmtree(_checkpoint(run, 6))
    copied_as(_checkpoint(run, 4), step)
    code, log = train(TOTAL_STEPS="6")
    assert code == 0, log
    assert "resumed from step 4 " in log and "target reached: step 6 of 6" in log


@pytest.mark.parametrize(
    ("what", "refusal"), [("move", AccessDenied), ("put_if_absent", Unavailable)]
)
def test_a_damaged_checkpoint_that_may_not_be_moved_stops_no_start(
    what: str,
    refusal: type[AppError],
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert train()[0] == 0
    run = tmp_path / "store/tiny"
    newest = newest_checkpoint(run)
    (newest / "model.safetensors").write_bytes(b"damaged")
    meant = getattr(LocalStore, what)

    def refuse(self: LocalStore, key: str, *more: Any) -> Any:
        if "step-" in key:
            raise refusal(f"{key} may not be written")
        return meant(self, key, *more)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, what, refuse)
        code, log = train()
    assert code == 0, log
    assert f"DAMAGED CHECKPOINT {newest.name} could not be moved aside" in log
    assert "may not be written" in log and "resumed from step 2 " in log
    assert (run / "checkpoints" / newest.name.replace("e000001", "e000002")).exists()
    assert train(ADDITIONAL_STEPS="2")[0] == 0
    assert (run / "quarantine" / newest.name / "model.safetensors").read_bytes() == b"damaged"


def test_a_checkpoint_that_does_not_say_its_run_is_resumed(train: Train, tmp_path: Path) -> None:
    assert train()[0] == 0
    newest = newest_checkpoint(tmp_path / "store/tiny")
    change_state(newest, run=None, precision=None, device=None)
    code, log = train(ADDITIONAL_STEPS="2")
    assert code == 0, log
    assert "resumed from step 4 " in log and "since the checkpoint" not in log


def test_other_libraries_precision_and_device_are_said_in_one_line(
    train: Train, tmp_path: Path
) -> None:
    assert train()[0] == 0
    newest = newest_checkpoint(tmp_path / "store/tiny")
    versions = json.loads((newest / "state.json").read_text())["versions"]
    change_state(
        newest, versions=versions | {"torch": "1.0"}, precision="16-false", device="a larger one"
    )
    code, log = train(ADDITIONAL_STEPS="2")
    assert code == 0, log
    (line,) = [line for line in log.splitlines() if "changed since the checkpoint was made" in line]
    assert "(was 1.0)" in line and "PRECISION" in line and "(was a larger one)" in line
    assert "since the checkpoint" not in train(ADDITIONAL_STEPS="2")[1]


def test_verify_and_generate_know_a_checkpoint_of_another_run(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train()[0] == 0
    assert train(SEED="7", RUN_NAME="other")[0] == 0
    run, other = tmp_path / "store/tiny", tmp_path / "store/other"
    shutil.rmtree(_checkpoint(run, 4))
    shutil.copytree(_checkpoint(other, 4), _checkpoint(run, 4))
    named = ["--checkpoint_uri", f"file://{tmp_path}/store", "--run_name", "tiny"]
    assert cli.main(["checkpoints", "verify", *named]) == 78
    assert "it is of another run: SEED was 1337, is 7" in capsys.readouterr().out
    words = ["--device", "cpu", "--prompt", "word", "--max_tokens", "1"]
    assert cli.main(["generate", *named, *words]) == 0
    log = capsys.readouterr().err
    assert "is damaged and passed over: it is of another run" in log
    assert f"model file://{run}/checkpoints/step-0000000002" in log
    assert cli.main(["generate", *named, *words, "--checkpoint", "4"]) == 78


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, no_backoff: None) -> None:
    """Asks an object that is not served as often as ever, but at once."""
    monkeypatch.setattr("app.run.fetching.time.sleep", lambda seconds: None)


@pytest.mark.parametrize("file", ["model.safetensors", "manifest.json"])
def test_an_object_that_is_listed_and_never_served_costs_steps_and_not_the_run(
    file: str,
    job: Job,
    bucket: str,
    s3_answers: Interposed,
    impatient: None,
    tmp_path: Path,
) -> None:
    uri, more = {"CHECKPOINT_URI": f"s3://{bucket}/x"}, {"ADDITIONAL_STEPS": "2"}
    assert job(["train"], **uri)[0] == 0
    place = "checkpoints/step-0000000004-e000001"
    s3_answers.answering = failing_at(f"{place}/{file}")

    code, out, _ = job(["checkpoints", "list"], **uri)
    assert code == 0 and ("not served: " in out) == (file == "manifest.json")
    code, out, log = job(["checkpoints", "verify"], **uri)
    assert code == 78 and "is damaged: step-0000000004-e000001" in error_lines(log)[-1]
    assert f"NOT SERVED: CHECKPOINT_URI: s3://{bucket}/x/tiny/{place}/{file}" in out
    assert "step-0000000002-e000001  ok" in out
    for command in (["verify", "4"], ["pull", "--to", f"{tmp_path}/pulled"]):
        code, _, log = job(["checkpoints", *command], **uri)
        assert code == 75 and f"{place}/{file}" in error_lines(log)[-1], log
    code, _, log = job(["checkpoints", "pull", "2", "--to", f"{tmp_path}/pulled"], **uri)
    assert code == 0, log

    code, _, log = job(["train"], **uri, **more)
    assert code == 0, log
    (line,) = error_lines(log)
    assert "CHECKPOINT step-0000000004-e000001 PASSED OVER" in line and f"{place}/{file}" in line
    assert "resumed from step 2 " in log and "target reached: step 4 of 4" in log
    # It is late now, and to be moved aside it would have to be read.
    code, _, log = job(["train"], **uri, **more)
    assert code == 0 and "target reached: step 6 of 6" in log and not error_lines(log)
    s3_answers.reset()
    code, _, log = job(["train"], **uri, **more)
    assert code == 0 and "target reached: step 8 of 8" in log
    code, out, _ = job(["quarantine", "list"], **uri)
    assert code == 0 and "step-0000000004-e000001" in out


@pytest.mark.parametrize("file", ["run.json", "LATEST", "lease.json", "metrics.jsonl"])
def test_a_file_of_the_run_that_is_not_served_is_named_and_the_start_is_to_be_tried_again(
    file: str, job: Job, bucket: str, s3_answers: Interposed, impatient: None
) -> None:
    uri = {"CHECKPOINT_URI": f"s3://{bucket}/x"}
    assert job(["train"], **uri)[0] == 0
    s3_answers.answering = failing_at(f"/tiny/{file}", f"/tiny/logs/{file}")
    code, _, log = job(["train"], **uri, ADDITIONAL_STEPS="2")
    assert code == 75 and file in error_lines(log)[-1], log
    s3_answers.reset()
    assert job(["train"], **uri, ADDITIONAL_STEPS="2")[0] == 0


def test_the_record_of_an_attempt_that_is_not_served_stops_only_a_start_that_depends_on_it(
    job: Job, bucket: str, s3_answers: Interposed, impatient: None
) -> None:
    uri, newest = {"CHECKPOINT_URI": f"s3://{bucket}/x"}, "e000001-from-0000000000.json"
    assert job(["train"], **uri, TOTAL_STEPS="4")[0] == 0
    s3_answers.answering = failing_at(newest)
    code, _, log = job(["train"], **uri, ADDITIONAL_STEPS="2")
    assert code == 75 and newest in error_lines(log)[-1], log
    code, _, log = job(["train"], **uri, ADDITIONAL_STEPS="2", EXTENSION_ID="more")
    assert code == 0 and f"{newest} cannot be read" in log
