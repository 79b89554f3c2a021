"""The train command, up to the training itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import app
from app.cli import parser as cli
from app.run.record import create_record
from app.stores.opening import open_store
from tests.support.imports_of_command import HEAVY, command_with_imports
from tests.support.repository import ROOT
from tests.support.stored_run import IDENTITY

pytestmark = pytest.mark.usefixtures("nothing_set")


def test_the_first_line_of_a_training_comes_before_the_libraries(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "CHECKPOINT_URI": f"file://{tmp_path}/store",
        "DATASET": f"{tmp_path}/no.txt",
        "MODEL": "tiny",
        "LOG_FORMAT": "json",
        "DATA_DIR": str(tmp_path),
    }
    result = command_with_imports(["train"], environment)
    lines = result.stderr.splitlines()
    imported = [line.rsplit("|", 1)[-1].strip() for line in lines]
    first = next(number for number, line in enumerate(lines) if line.startswith("{"))
    assert first < min(imported.index(name) for name in HEAVY & set(imported))
    assert json.loads(lines[first])["message"] == (
        f"smollm2-spot-trainer {app.__version__} starts: run tiny, checkpoints in "
        f"file://{tmp_path}/store"
    )
    assert result.returncode == 78 and "torch" in imported


def test_a_launcher_of_another_kind_is_refused_in_one_line_before_the_libraries() -> None:
    code = "import sys; from app.cli.parser import main; "
    code += "print(main(['train']), 'torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "SLURM_STEP_NUM_TASKS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "78 False\n"
    (line,) = result.stderr.splitlines()
    assert "SLURM_STEP_NUM_TASKS=2" in line and "start it without srun" in line


@pytest.mark.parametrize("world_size", ["", "1", "many"])
def test_one_process_that_a_launcher_started_trains(
    world_size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", world_size)
    trained = []
    monkeypatch.setattr("app.training.start.run", lambda *_: trained.append(True))
    assert (cli.main(["train"]), trained) == (0, [True])


def test_other_commands_are_not_refused_beside_several_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    store = open_store(f"file://{tmp_path}", "tiny")
    create_record(store, "tiny", IDENTITY, 20)
    assert cli.main(["checkpoints", "list", "--checkpoint_uri", f"file://{tmp_path}"]) == 0
    assert cli.main(["config"]) == 0
    assert "WORLD_SIZE" not in capsys.readouterr().err
