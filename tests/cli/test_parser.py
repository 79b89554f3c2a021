"""The command line: exit codes, help, and one clear line for each mistake."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import app
from app.cli import parser as cli
from app.errors import AppError
from app.run.committing import commit
from app.run.layout import CheckpointName
from app.run.record import create_record
from app.settings.variables import variables
from app.stores.opening import open_store
from tests.support.stored_run import IDENTITY, FreeLease
from tests.test_architecture import HEAVY


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in variables():
        monkeypatch.delenv(variable.name, raising=False)
    monkeypatch.chdir(tmp_path)


def errors(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if "ERROR" in line]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "COMMAND"),
        (["trian"], "trian"),
        (["train", "--total_step", "5"], "did you mean --total_steps?"),
        (["train", "--total_steps"], "expected one argument"),
        (["checkpoints"], "VERB"),
        (["generate", "--top_p", "2"], "2 is not between 0 and 1"),
        (["generate", "--max_tokens", "0"], "0 is below 1"),
        (["generate", "--max_tokens", "99999999999"], "99999999999 is above 1,000,000"),
    ],
)
def test_a_bad_command_line_exits_64_with_one_line(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 64
    lines = errors(capsys)
    assert len(lines) == 1 and text in lines[0]


def test_a_wrong_flag_value_exits_78_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--total_steps", "none"]) == 78
    lines = errors(capsys)
    assert len(lines) == 1
    assert "TOTAL_STEPS='none' (from a flag) cannot be used" in lines[0]


def test_config_prints_every_variable_with_its_source(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEED", "9")
    assert cli.main(["config", "--total_steps", "7"]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert set(rows) == {variable.name for variable in variables()}
    assert rows["SEED"] == ["9", "environment"]
    assert rows["TOTAL_STEPS"] == ["7", "flag"]
    assert rows["BATCH_SIZE"] == ["2", "default"]


def test_help_names_every_command_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for word in ("train", "prepare", "generate", "checkpoints", "report", "config", "health"):
        assert word in text
    codes = {cls.exit_code for cls in _tree(AppError)}
    assert all(f"{code} " in text for code in codes)


def test_checkpoints_of_a_run_that_does_not_exist_exit_78(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["checkpoints", "list", "--checkpoint_uri", f"file://{tmp_path}"]) == 78
    assert "holds no run named smollm2-135m or tiny" in errors(capsys)[0]
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_cannot_be_put_there_exits_78_with_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["prepare", "--tokenizer_only", "file/tokenizer"]) == 78
    lines = errors(capsys)
    assert len(lines) == 1 and "--tokenizer_only file/tokenizer cannot be used" in lines[0]


def test_the_first_line_of_a_training_comes_before_the_libraries(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "CHECKPOINT_URI": f"file://{tmp_path}/store",
        "DATASET": f"{tmp_path}/no.txt",
        "MODEL": "tiny",
        "LOG_FORMAT": "json",
        "DATA_DIR": str(tmp_path),
    }
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "app", "train"],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = result.stderr.splitlines()
    imported = [line.rsplit("|", 1)[-1].strip() for line in lines]
    first = next(number for number, line in enumerate(lines) if line.startswith("{"))
    assert first < min(imported.index(name) for name in HEAVY & set(imported))
    assert json.loads(lines[first])["message"] == (
        f"smollm2-spot-trainer {app.__version__} starts: run tiny, checkpoints in "
        f"file://{tmp_path}/store"
    )
    assert result.returncode == 78 and "torch" in imported


def test_training_in_several_processes_is_refused_in_one_line_before_the_libraries() -> None:
    code = "import sys; from app.cli.parser import main; "
    code += "print(main(['train']), 'torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "78 False\n"
    (line,) = result.stderr.splitlines()
    assert "WORLD_SIZE=2" in line and "start it without torchrun" in line


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


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["version"] == app.__version__


_OTHERS = {"boto3", "tokenizers", "safetensors", "huggingface_hub", "pyarrow", "pandas"}
LIGHT_COMMANDS = [
    ["--help"],
    ["train", "--help"],
    ["config"],
    ["config", "--markdown"],
    ["checkpoints", "list"],
    ["checkpoints", "list", "--json"],
    ["train", "--total_steps", "none"],
]


@pytest.mark.parametrize("arguments", LIGHT_COMMANDS, ids=" ".join)
def test_a_light_command_imports_nothing_heavy_to_its_end(
    arguments: list[str], tmp_path: Path
) -> None:
    store = open_store(f"file://{tmp_path}", "tiny")
    commit(store, CheckpointName(20, 1), {"state.json": [b"{}"]}, 1.0, FreeLease(store))
    create_record(store, "tiny", IDENTITY, 20)
    environment = {**os.environ, "CHECKPOINT_URI": f"file://{tmp_path}"}
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "app", *arguments],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = result.stderr.splitlines()
    imported = {line.rsplit("|", 1)[1].strip() for line in lines if line.startswith("import time")}
    assert "app.cli.commands" in imported
    assert not imported & {*HEAVY, *_OTHERS}
    if arguments[0] == "checkpoints":
        assert "step-0000000020-e000001" in result.stdout
    assert result.returncode == (78 if "none" in arguments else 0)


def _tree(cls: type[AppError]) -> list[type[AppError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in _tree(child))]
