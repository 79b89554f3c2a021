"""What a start refuses, before it takes the run: the store stays as it was."""

import dataclasses
import json
import shutil
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from safetensors.torch import load_file, save_file

from app.cli import parser as cli
from app.data.data_dir import DataDir
from app.errors import Unavailable
from app.run.journal import AttemptJournal
from app.run.layout import LATEST
from app.run.view import RunView, read_view
from app.stores.contract import ObjectInfo, Store
from app.stores.local import LocalStore
from app.stores.opening import open_store
from app.training.attempt import Attempt
from app.training.preemption import Interrupted
from tests.support.job import newest_checkpoint, tensors
from tests.support.stored_run import stored_attempts
from tests.support.train_command import Train, assert_refused, files_below


@pytest.fixture
def run(train: Train, tmp_path: Path) -> Path:
    """The folder of a finished run of 4 steps, with checkpoints of steps 2 and 4."""
    code, log = train()
    assert code == 0, log
    return tmp_path / "store" / "tiny"


def lose_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / LATEST).unlink()


def keep_metrics_alone(run: Path) -> None:
    shutil.rmtree(run / "attempts")


def keep_quarantine_alone(run: Path) -> None:
    shutil.rmtree(run / "attempts")
    shutil.rmtree(run / "logs")
    (run / "quarantine" / "step-0000000004-e000001").mkdir(parents=True)
    (run / "quarantine" / "step-0000000004-e000001" / "reason.json").write_text("{}")


@pytest.mark.parametrize(
    ("leave", "trace"),
    [
        (lambda run: None, "attempts records 2 commits"),
        (keep_metrics_alone, "logs/metrics.jsonl has rows"),
        (keep_quarantine_alone, "quarantine has step-0000000004-e000001"),
    ],
    ids=["journal", "metrics", "quarantine"],
)
def test_a_trace_of_checkpoints_without_one_is_refused_with_the_trace_named(
    run: Path, train: Train, leave: Callable[[Path], None], trace: str
) -> None:
    lose_checkpoints(run)
    leave(run)
    before = files_below(run)
    outcome = train()
    assert_refused(outcome, 78, trace)
    assert "no checkpoint is left" in outcome[1] and "another RUN_NAME" in outcome[1]
    assert files_below(run) == before


def test_checkpoints_from_a_backup_are_not_started_over_and_go_on_once_accepted(
    run: Path, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a short start beside an empty folder, by a version that did not refuse that."""
    (run / "attempts" / "e000002-from-0000000000.json").write_text("{}")
    name = newest_checkpoint(run).name
    before = files_below(run)
    assert_refused(train(ADDITIONAL_STEPS="2"), 78, f"python -m app checkpoints accept {name}")
    assert files_below(run) == before
    words = ["--model=tiny", f"--checkpoint_uri=file://{tmp_path}/store", f"--data_dir={tmp_path}"]
    assert cli.main(["checkpoints", "accept", name, "--yes", *words]) == 0
    capsys.readouterr()
    code, log = train(ADDITIONAL_STEPS="2")
    assert code == 0 and "resumed from step 4" in log, log
    assert newest_checkpoint(run).name.startswith("step-0000000006")


def test_a_run_that_is_rolled_back_is_made_again_with_the_same_bits(
    run: Path, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tensors(newest_checkpoint(run))
    words = ["--model=tiny", f"--checkpoint_uri=file://{tmp_path}/store", f"--data_dir={tmp_path}"]
    assert cli.main(["checkpoints", "rollback", "--to", "2", "--yes", *words]) == 0
    capsys.readouterr()
    code, log = train()
    assert code == 0 and "resumed from step 2" in log, log
    after = tensors(newest_checkpoint(run))
    assert newest_checkpoint(run).name == "step-0000000004-e000003"
    assert all((before[name] == after[name]).all() for name in before)


def test_resume_must_starts_no_new_run(train: Train, tmp_path: Path) -> None:
    assert_refused(train(RESUME="must"), 78, "RESUME=must")
    assert not (tmp_path / "store" / "tiny" / "run.json").exists()


def test_resume_must_goes_on_with_a_run(run: Path, train: Train) -> None:
    assert train(RESUME="must")[0] == 0
    code, log = train(RESUME="must", ADDITIONAL_STEPS="2")
    assert code == 0 and "resumed from step 4" in log, log


def test_resume_never_starts_in_an_empty_place_only(train: Train, tmp_path: Path) -> None:
    assert train(RESUME="never", TOTAL_STEPS="1")[0] == 0
    assert_refused(train(RESUME="never", TOTAL_STEPS="1"), 78, "RESUME=never")
    other = tmp_path / "store" / "other" / "notes.txt"
    other.parent.mkdir()
    other.write_text("a person was here")
    assert_refused(train(RESUME="never", RUN_NAME="other"), 78, "it holds notes.txt")


def test_a_resume_lists_no_prefix_more_than_twice(
    run: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(newest_checkpoint(run))
    (run / LATEST).write_text(newest_checkpoint(run).name)
    asked: Counter[str] = Counter()
    until_training: Counter[str] = Counter()
    listing = LocalStore.list

    def counted(store: LocalStore, prefix: str) -> Iterator[ObjectInfo]:
        asked[prefix] += 1
        return listing(store, prefix)

    def begin(_: Attempt) -> None:
        until_training.update(asked)
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(LocalStore, "list", counted)
    monkeypatch.setattr(Attempt, "begin", begin)
    code, log = train()
    assert code == 143 and "resumed from step 2" in log, log
    checkpoint = f"checkpoints/{newest_checkpoint(run).name}/"
    assert until_training == {"": 2, checkpoint: 1, "inputs": 1}


def contents(store: Path) -> dict[str, bytes]:
    """Of every object: what the store keeps for itself is none."""
    names = [name for name in files_below(store) if "/.store-" not in f"/{name}"]
    return {name: (store / name).read_bytes() for name in names}


def test_a_port_that_is_taken_is_said_and_the_training_goes_on(train: Train) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, log = train(METRICS_PORT=port)
    assert code == 0 and f"METRICS_PORT={port} (Address already in use)" in log, log
    code, log = train(ADDITIONAL_STEPS="2", METRICS_PORT=port)
    assert code == 0 and f"http://127.0.0.1:{port}/" in log, log
    with socket.create_server(("127.0.0.1", int(port))):
        pass  # and it is given back


@pytest.mark.parametrize(
    ("place", "is_folder"),
    [
        ("logs", False),
        ("logs/tiny", False),
        ("logs/tiny/metrics.jsonl", True),
        ("logs/tiny/metrics.csv", True),
        ("logs/tiny/tensorboard", False),
        ("restore", False),
    ],
)
def test_a_place_in_the_data_dir_that_cannot_be_written_is_found_before_the_run_is_taken(
    place: str, is_folder: bool, train: Train, tmp_path: Path
) -> None:
    data_dir, uri = DataDir(tmp_path / "data"), f"file://{tmp_path}/store"
    logs = data_dir.logs("tiny", f"{uri}/tiny").name
    in_the_way = data_dir.path / place.replace("tiny", logs)
    in_the_way.parent.mkdir(parents=True)
    if is_folder:
        in_the_way.mkdir()
    else:
        in_the_way.write_text("")
    assert_refused(train(DATA_DIR=str(data_dir.path)), 78, "DATA_DIR")
    assert contents(tmp_path / "store") == {}


def test_first_weights_of_another_shape_are_found_before_the_run_is_taken(
    train: Train, tmp_path: Path
) -> None:
    assert train()[0] == 0
    begin = tmp_path / "begin"
    shutil.copytree(newest_checkpoint(tmp_path / "store" / "tiny"), begin)
    weights = load_file(begin / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, begin / "model.safetensors", {"format": "pt"})
    before = contents(tmp_path / "store")
    assert_refused(train(MODEL="", INIT_FROM=str(begin)), 78, "model.norm.weight is missing")
    assert contents(tmp_path / "store") == before


def test_an_attempt_that_fails_before_its_first_step_says_how_it_ended(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Mock(side_effect=Unavailable("DATA_DIR is full"))
    monkeypatch.setattr("app.training.opening.MetricsLog", full)
    assert train()[0] == 75
    (attempt,) = stored_attempts(open_store(f"file://{tmp_path}/store", "tiny"), newest=9)
    assert attempt.ended == "exit 75: DATA_DIR is full"


def test_a_first_checkpoint_that_is_made_while_this_start_prepares_is_none_that_was_lost(
    run: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def before_the_first_checkpoint(store: Store) -> RunView:
        return dataclasses.replace(read_view(store), checkpoints=[], latest=None)

    monkeypatch.setattr("app.training.groundwork.read_view", before_the_first_checkpoint)
    code, log = train(ADDITIONAL_STEPS="2")
    assert code == 0 and "resumed from step 4" in log, log


def test_late_checkpoints_beside_a_damaged_one_are_not_moved_by_a_start_that_is_refused(
    run: Path, train: Train
) -> None:
    (run / "attempts" / "e000002-from-0000000000.json").write_text("{}")
    (newest_checkpoint(run) / "manifest.json").unlink()
    before = files_below(run)
    assert_refused(train(ADDITIONAL_STEPS="2"), 78, "checkpoints accept step-0000000002-e000001")
    assert files_below(run) == before


@pytest.mark.parametrize("attempt", ["{", None], ids=["unreadable", "without commits"])
def test_rows_and_attempts_that_cannot_be_read_are_traces(
    run: Path, train: Train, attempt: str | None
) -> None:
    lose_checkpoints(run)
    (record,) = (run / "attempts").iterdir()
    told = json.loads(record.read_text()) | {"commits": 0}
    record.write_text(attempt or json.dumps(told))
    rows = [json.loads(line) for line in (run / "logs" / "metrics.jsonl").read_text().splitlines()]
    rows[-1]["saves_committed"] = 1 if attempt is None else 0
    (run / "logs" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trace = "rows of an attempt that saved" if attempt is None else "one that cannot be read"
    assert_refused(train(), 78, trace)


def test_a_record_that_is_older_than_the_checkpoints_is_refused_and_can_be_repaired(
    run: Path, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = (run / "run.json").read_text()
    assert train(ADDITIONAL_STEPS="2")[0] == 0
    (run / "run.json").write_text(old)
    assert_refused(train(), 78, "python -m app run repair")
    assert_refused(train(ADDITIONAL_STEPS="2"), 78, "python -m app run repair")
    words = ["--model=tiny", f"--checkpoint_uri=file://{tmp_path}/store", f"--data_dir={tmp_path}"]
    assert cli.main(["run", "repair", "--yes", *words]) == 0
    capsys.readouterr()
    code, log = train()
    assert code == 0 and "finished at step 6" in log, log


def test_a_kill_behind_the_last_words_is_no_second_extension(
    run: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(AttemptJournal, "close", lambda journal: None)
        assert train(ADDITIONAL_STEPS="2")[0] == 0
    code, log = train(ADDITIONAL_STEPS="2")
    assert code == 0 and "takes its place" in log, log
    assert newest_checkpoint(run).name.startswith("step-0000000006")
    assert train(ADDITIONAL_STEPS="2")[0] == 0
    assert newest_checkpoint(run).name.startswith("step-0000000008")
