"""entrypoint.sh, with a stand-in for `python` that shows what it was started with."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.repository import ROOT

ENTRYPOINT = ROOT / "entrypoint.sh"
STAND_IN = '#!/bin/sh\necho "$@"\necho "HF_HOME=${HF_HOME:-}"\necho "pid=$$"\n'


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(STAND_IN)
    python.chmod(0o755)
    return {"PATH": f"{python.parent}:{os.defpath}", "DATA_DIR": str(tmp_path / "data")}


def started_with(words: list[str], environment: dict[str, str]) -> tuple[int, list[str]]:
    """The process id of the entry point, and the lines of the stand-in."""
    process = subprocess.Popen(
        [str(ENTRYPOINT), *words], env=environment, stdout=subprocess.PIPE, text=True
    )
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    return process.pid, output.splitlines()


@pytest.mark.parametrize(
    ("words", "program"),
    [
        ([], "train"),
        (["--total_steps", "60"], "train --total_steps 60"),
        (["train", "--total_steps", "60"], "train --total_steps 60"),
        (["checkpoints", "list"], "checkpoints list"),
        (["--help"], "--help"),
    ],
)
def test_the_image_takes_the_words_of_the_program(
    words: list[str], program: str, environment: dict[str, str]
) -> None:
    _, lines = started_with(words, environment)
    assert lines[0] == f"-m app {program}"


def test_python_takes_the_place_of_the_shell(environment: dict[str, str]) -> None:
    pid, lines = started_with([], environment)
    assert lines[2] == f"pid={pid}"


def test_caches_live_on_the_data_volume(environment: dict[str, str]) -> None:
    _, lines = started_with([], environment)
    assert lines[1] == f"HF_HOME={environment['DATA_DIR']}/cache/huggingface"


def test_a_cache_that_the_user_names_is_kept(environment: dict[str, str]) -> None:
    _, lines = started_with([], {**environment, "HF_HOME": "/elsewhere"})
    assert lines[1] == "HF_HOME=/elsewhere"


def test_a_data_volume_that_cannot_be_written_does_not_stop_it(
    environment: dict[str, str], tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    _, lines = started_with(["config"], {**environment, "DATA_DIR": str(blocked)})
    assert lines[:2] == ["-m app config", "HF_HOME="]
