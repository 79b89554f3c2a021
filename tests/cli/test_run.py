"""The run command: run.json made again from a checkpoint."""

import json
from pathlib import Path

import pytest

from app.cli import parser as cli
from app.run.lease import Lease
from app.stores.opening import open_store
from tests.support.changed_checkpoint import change_state
from tests.support.error_lines import errors
from tests.support.job import newest_checkpoint
from tests.support.train_command import Train, assert_refused, files_below


def _repair(folder: Path, *words: str) -> int:
    named = ["--checkpoint_uri", f"file://{folder}/store", "--run_name", "tiny"]
    return cli.main(["run", "repair", *named, "--lease_wait", "0", "--lease_ttl", "2", *words])


def test_a_lost_record_is_made_again_and_the_run_goes_on(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(TOTAL_STEPS="2")[0] == 0
    assert train(TOTAL_STEPS="2", ADDITIONAL_STEPS="2", EXTENSION_ID="once")[0] == 0
    run = tmp_path / "store/tiny"
    before = (run / "run.json").read_text()
    (run / "run.json").unlink()
    assert_refused(train(TOTAL_STEPS="2"), 78, "make it again with `python -m app run repair`")
    left = files_below(run)
    assert _repair(tmp_path) == 78
    shown = capsys.readouterr()
    assert "step-0000000004-e000002 says it: MODEL=tiny" in shown.out
    assert "target step 2, extended to 4" in shown.out and "add --yes" in shown.err
    assert files_below(run) == left
    assert _repair(tmp_path, "--yes") == 0
    assert (run / "run.json").read_text() == before
    code, log = train(TOTAL_STEPS="2", ADDITIONAL_STEPS="2", EXTENSION_ID="once")
    assert code == 0 and "is applied already" in log, log


def test_a_damaged_record_is_replaced_and_a_whole_one_never(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(TOTAL_STEPS="2")[0] == 0
    record = tmp_path / "store/tiny/run.json"
    before = record.read_text()
    assert _repair(tmp_path, "--yes") == 78
    assert "nothing to repair" in errors(capsys)[0]
    record.write_text(before[:-9])
    assert _repair(tmp_path, "--yes") == 0
    assert record.read_text() == before


def test_a_repair_waits_for_nobody_who_holds_the_run(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(TOTAL_STEPS="2")[0] == 0
    (tmp_path / "store/tiny/run.json").unlink()
    holder = Lease(open_store(f"file://{tmp_path}/store", "tiny"), 2, "other:1:x")
    holder.acquire(0, lambda line: None, lambda: False)
    holder.start_renewing()
    try:
        assert _repair(tmp_path, "--yes") == 75
    finally:
        holder.release()
    assert "is held by other:1:x" in errors(capsys)[0]
    assert not (tmp_path / "store/tiny/run.json").exists()


def test_without_a_checkpoint_that_says_it_nothing_is_guessed(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _repair(tmp_path, "--yes") == 78
    assert "holds no checkpoint of a run named tiny" in errors(capsys)[0]
    assert train(TOTAL_STEPS="2")[0] == 0
    run = tmp_path / "store/tiny"
    change_state(newest_checkpoint(run), run=None)
    (run / "run.json").unlink()
    assert _repair(tmp_path, "--yes") == 78
    assert "did not write into it what the run is" in errors(capsys)[0]


def test_a_record_is_made_from_the_newest_checkpoint_that_is_whole(
    train: Train, tmp_path: Path
) -> None:
    assert train()[0] == 0
    run = tmp_path / "store/tiny"
    expected = json.loads((run / "run.json").read_text())
    (run / "run.json").unlink()
    (newest_checkpoint(run) / "model.safetensors").write_bytes(b"cut")
    assert _repair(tmp_path, "--yes") == 0
    assert json.loads((run / "run.json").read_text()) == expected
