"""What can be refused is refused before the run is taken: its store stays as it was."""

import shutil
import socket
from pathlib import Path
from unittest.mock import Mock

import pytest
from safetensors.torch import load_file, save_file

from app.data.data_dir import DataDir
from app.errors import Unavailable
from app.run.journal import read_attempts
from app.stores.opening import open_store
from tests.support.job import newest_checkpoint
from tests.support.train_command import Train, assert_refused, files_below


def contents(store: Path) -> dict[str, bytes]:
    """Of every object: what the store keeps for itself is none."""
    names = [name for name in files_below(store) if "/.store-" not in f"/{name}"]
    return {name: (store / name).read_bytes() for name in names}


def test_a_port_that_is_taken_is_found_before_the_run_is(train: Train, tmp_path: Path) -> None:
    assert train()[0] == 0
    before = contents(tmp_path / "store")
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = str(taken.getsockname()[1])
        outcome = train(ADDITIONAL_STEPS="2", METRICS_PORT=port)
    assert_refused(outcome, 78, f"METRICS_PORT={port}")
    assert contents(tmp_path / "store") == before
    code, log = train(ADDITIONAL_STEPS="2", METRICS_PORT=port)
    assert code == 0, log
    with socket.create_server(("0.0.0.0", int(port))):
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
    (attempt,) = read_attempts(open_store(f"file://{tmp_path}/store", "tiny"), newest=9)
    assert attempt.ended == "exit 75: DATA_DIR is full"
