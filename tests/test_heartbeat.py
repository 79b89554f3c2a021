"""The sign of life: whose it is, and that a job does without it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from app.cli import parser as cli
from app.errors import Unavailable
from app.heartbeat import (
    COMPILING,
    LONGEST_SILENCE,
    SHORTEST_ALLOWANCE,
    beat,
    check_heartbeat,
    compiling_begins,
    heartbeat_path,
    show_life_of,
    steps_take,
)
from tests.support.train_command import Train, assert_refused

RUN = "run tiny in file:///checkpoints"


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder for temporary files."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_only_the_run_that_beats_is_healthy(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"file://{tmp_path}/store"
    assert train(RUN_NAME="mine", TOTAL_STEPS="1")[0] == 0
    assert cli.main(["health", "--checkpoint_uri", uri, "--run_name", "mine"]) == 0
    assert "alive" in capsys.readouterr().out
    assert cli.main(["health", "--checkpoint_uri", uri, "--run_name", "hung"]) == 75
    assert f"no sign of life of run hung in {uri}" in capsys.readouterr().err
    assert cli.main(["health", "--checkpoint_uri", f"{uri}-2", "--run_name", "mine"]) == 75


def test_a_long_silence_is_no_life() -> None:
    show_life_of(RUN)
    assert check_heartbeat(RUN) == "alive 0 s ago"
    long_ago = heartbeat_path(RUN).stat().st_mtime - LONGEST_SILENCE - 60
    os.utime(heartbeat_path(RUN), (long_ago, long_ago))
    with pytest.raises(Unavailable, match="no sign of life of run tiny"):
        check_heartbeat(RUN)
    beat()
    assert check_heartbeat(RUN).startswith("alive")


def aged(seconds: float) -> None:
    """As if the last sign of life had been so long ago."""
    beat()
    then = heartbeat_path(RUN).stat().st_mtime - seconds
    os.utime(heartbeat_path(RUN), (then, then))


@pytest.mark.parametrize(
    ("phase", "allowed"),
    [
        (lambda: None, LONGEST_SILENCE),
        (compiling_begins, COMPILING),
        (lambda: steps_take(0.2), SHORTEST_ALLOWANCE),
        (lambda: steps_take(25), 500),
        (lambda: steps_take(1000), LONGEST_SILENCE),
    ],
)
def test_how_long_a_job_may_be_silent_is_what_its_phase_asks_for(
    phase: Callable[[], None], allowed: float
) -> None:
    show_life_of(RUN)
    compiling_begins()  # what was longer before is forgotten
    show_life_of(RUN)
    phase()
    aged(allowed - 5)
    assert check_heartbeat(RUN).startswith("alive")
    aged(allowed + 5)
    with pytest.raises(Unavailable, match=rf"allowed: {allowed:.0f} s"):
        check_heartbeat(RUN)


def test_a_job_says_how_long_it_may_be_silent_once_it_knows_its_steps(
    train: Train, temporary: Path
) -> None:
    assert train(TOTAL_STEPS="3")[0] == 0
    (said,) = temporary.glob("smollm2-heartbeat-*")
    assert float(said.read_text()) == SHORTEST_ALLOWANCE


def to_file(path: Path) -> None:
    path.symlink_to(path.parent / "victim")


def to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "not-there-yet")


@pytest.mark.parametrize("plant", [to_file, to_nothing, Path.mkdir, os.mkfifo])
def test_what_somebody_planted_under_the_name_is_neither_touched_nor_believed(
    plant: Callable[[Path], None], temporary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    victim = temporary / "victim"
    victim.write_text("precious")
    os.utime(victim, (1, 1))
    plant(heartbeat_path(RUN))
    show_life_of(RUN)
    assert "cannot be written" in caplog.text and "TMPDIR" in caplog.text
    assert (victim.stat().st_mtime, victim.read_text()) == (1, "precious")
    assert not (temporary / "not-there-yet").exists()
    with pytest.raises(Unavailable, match="no sign of life"):
        check_heartbeat(RUN)


def test_a_file_of_another_user_is_neither_touched_nor_believed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    another = os.geteuid() + 1
    monkeypatch.setattr("app.heartbeat.os.geteuid", lambda: another)
    heartbeat_path(RUN).touch(0o666)
    os.utime(heartbeat_path(RUN), (1, 1))
    show_life_of(RUN)
    assert "it is not a file of this user" in caplog.text
    assert heartbeat_path(RUN).stat().st_mtime == 1
    with pytest.raises(Unavailable, match="it is not a file of this user"):
        check_heartbeat(RUN)


def test_two_users_have_two_files(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = heartbeat_path(RUN)
    another = os.geteuid() + 1
    monkeypatch.setattr("app.heartbeat.os.geteuid", lambda: another)
    assert heartbeat_path(RUN) != mine


def test_a_sign_of_life_that_cannot_be_given_is_said_once_and_costs_nothing(
    train: Train, temporary: Path
) -> None:
    temporary.rmdir()
    code, log = train()
    assert code == 0, log
    assert len([line for line in log.splitlines() if "`health` will call it silent" in line]) == 1
    with pytest.raises(Unavailable, match="no sign of life"):
        check_heartbeat(RUN)


def test_without_a_folder_for_temporary_files_a_job_works_in_its_data_dir(
    train: Train, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary.rmdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: [str(temporary)])
    data_dir = tmp_path / "data"
    code, log = train(DATA_DIR=str(data_dir))
    assert code == 0 and "health" not in log, log
    assert [file.parent for file in data_dir.rglob("smollm2-heartbeat-*")] == [data_dir / "tmp"]
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "file").write_text("")
    assert_refused(train(DATA_DIR=str(tmp_path / "file")), 78, "TMPDIR")
