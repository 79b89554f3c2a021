"""The command line: exit codes, one line for each mistake, and what answers at once."""

import json
import logging
import os
import tomllib
from pathlib import Path

import pytest

import app
from app.cli import parser as cli
from app.errors import AppError
from app.run.committing import commit
from app.run.layout import CheckpointName
from app.run.record import create_record
from app.stores.opening import open_store
from tests.support.error_lines import errors
from tests.support.imports_of_command import HEAVY, command_with_imports
from tests.support.repository import ROOT
from tests.support.stored_run import IDENTITY, FreeLease

pytestmark = pytest.mark.usefixtures("nothing_set")


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


@pytest.mark.parametrize("place", ["environment", "flag", "file"])
def test_with_log_format_json_an_error_in_the_settings_is_a_line_of_json(
    place: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["train", "--total_steps", "none"]
    if place == "environment":
        monkeypatch.setenv("LOG_FORMAT", "json")
    elif place == "flag":
        arguments += ["--log_format", "json"]
    else:
        Path(".env").write_text("LOG_FORMAT=json\n")
    assert cli.main(arguments) == 78
    (line,) = capsys.readouterr().err.splitlines()
    event = json.loads(line)
    assert event["level"] == "error" and "TOTAL_STEPS='none'" in event["message"]


def test_a_log_format_that_is_wrong_itself_is_told_as_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["train", "--log_format", "jsn"]) == 78
    assert "LOG_FORMAT='jsn'" in errors(capsys)[0]


def test_help_names_every_command_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for word in ("train", "prepare", "generate", "checkpoints", "report", "config", "health"):
        assert word in text
    codes = {cls.exit_code for cls in _tree(AppError)}
    assert all(f"{code} " in text for code in codes)


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["version"] == app.__version__


_OTHERS = {"boto3", "tokenizers", "safetensors", "huggingface_hub", "pyarrow", "pandas"}
LIGHT_COMMANDS = [
    ["--help"],
    ["train", "--help"],
    ["config", "--model", "tiny"],
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
    result = command_with_imports(arguments, environment)
    lines = result.stderr.splitlines()
    imported = {line.rsplit("|", 1)[1].strip() for line in lines if line.startswith("import time")}
    assert "app.cli.checkpoints" in imported
    assert not imported & {*HEAVY, *_OTHERS}
    if arguments[0] == "checkpoints":
        assert "step-0000000020-e000001" in result.stdout
    assert result.returncode == (78 if "none" in arguments else 0)


def _tree(cls: type[AppError]) -> list[type[AppError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in _tree(child))]


@pytest.mark.parametrize(("level", "shown"), [("debug", True), ("info", False)])
def test_an_error_has_its_traceback_where_log_level_is_debug(
    level: str, shown: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["checkpoints", "list", "--checkpoint_uri", f"{tmp_path}/missing", "--run_name", "a"]
    assert cli.main([*words, "--log_level", level]) == 78
    said = capsys.readouterr().err
    assert ("Traceback (most recent call last)" in said) is shown
    assert "(exit 78)" in said


def test_log_level_warning_leaves_out_what_is_no_warning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOG_LEVEL", "warning")
    cli.main(["config"])
    log = logging.getLogger("app")
    log.info("an event")
    log.warning("a warning")
    said = capsys.readouterr().err
    assert "an event" not in said and "a warning" in said
