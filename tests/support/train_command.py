"""The train command in a test's own process, and what it says where it refuses to train."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from app.cli import parser as cli
from app.settings.variables import variables

Train = Callable[..., tuple[int, str]]


Job = Callable[..., tuple[int, str, str]]


@pytest.fixture
def job(
    job_environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Job:
    """Run a command in this process; returns exit code, output and log."""
    for variable in variables():
        monkeypatch.delenv(variable.name, raising=False)
    base = {
        **job_environment,
        "CHECKPOINT_URI": f"file://{tmp_path}/store",
        "TRAINER": "torch",
        "TOTAL_STEPS": "4",
        "CHECKPOINT_EVERY_STEPS": "2",
    }

    def run(command: Sequence[str], **changes: str) -> tuple[int, str, str]:
        with monkeypatch.context() as patch:
            for name, value in {**base, **changes}.items():
                patch.setenv(name, value)
            code = cli.main(command)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def train(job: Job) -> Train:
    """Run the train command in this process; returns exit code and log."""

    def run(**changes: str) -> tuple[int, str]:
        code, _, log = job(["train"], **changes)
        return code, log

    return run


def error_lines(log: str) -> list[str]:
    return [line for line in log.splitlines() if " ERROR: " in line]


def files_below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def assert_refused(outcome: tuple[int, str], code: int, text: str) -> None:
    assert outcome[0] == code, outcome[1]
    lines = error_lines(outcome[1])
    assert len(lines) == 1, outcome[1]
    assert text in lines[0]
