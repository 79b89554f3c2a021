import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from app.data.data_dir import OWN_FOLDER, DataDir, own_folder


@pytest.mark.parametrize("moment", ["before it is opened", "before it is removed"])
def test_a_folder_that_its_process_removes_meanwhile_is_no_failure(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    another = tmp_path / f"{OWN_FOLDER}another"
    another.mkdir()
    open_it = os.open

    def race(path: Path, *more: Any, **named: Any) -> int:
        if path == another and moment == "before it is opened":
            another.rmdir()
        descriptor = open_it(path, *more, **named)
        if path == another:
            another.rmdir()
        return descriptor

    monkeypatch.setattr("app.data.data_dir.os.open", race)
    with own_folder(tmp_path) as folder:
        assert folder.is_dir()
        shutil.copy(__file__, folder)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_folder_that_somebody_else_made_stays_whatever_lies_in_it(tmp_path: Path) -> None:
    backup = tmp_path / "backup of the checkpoints"
    backup.mkdir()
    (backup / "model.safetensors").write_bytes(b"weights")
    left = tmp_path / f"{OWN_FOLDER}left-by-a-killed-process"
    left.mkdir()
    with own_folder(tmp_path):
        assert (backup / "model.safetensors").read_bytes() == b"weights"
        assert not left.exists()
    assert (backup / "model.safetensors").exists()


# Run by root, it is another user than the one that left something.
_AS_ANOTHER_USER = """
import os, sys
from pathlib import Path
from app.data.data_dir import own_folder
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65_533)
    os.setuid(65_533)
with own_folder(Path(sys.argv[1])) as folder:
    (folder / "mine").touch()
"""


@pytest.mark.parametrize("mode", [0o000, 0o555])
def test_what_another_user_left_stays_and_stops_nobody(mode: int) -> None:
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders let no other user in
        Path(place).chmod(0o777)
        left = Path(place) / f"{OWN_FOLDER}of-another-user"
        left.mkdir()
        (left / "model.safetensors").touch()
        (Path(place) / ".lock").touch(0o644)
        left.chmod(mode)
        done = subprocess.run(
            [sys.executable, "-c", _AS_ANOTHER_USER, place],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.count(str(left)) == 1 and "Permission denied" in done.stderr
        left.chmod(0o700)
        assert (left / "model.safetensors").exists()


def test_a_link_that_is_named_as_a_working_folder_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    link = tmp_path / "restore" / f"{OWN_FOLDER}link"
    link.parent.mkdir()
    link.symlink_to(elsewhere)
    with own_folder(link.parent):
        pass
    assert link.is_symlink() and (elsewhere / "file").exists()


@pytest.mark.parametrize(
    ("place", "folder"),
    [
        ("data/restore", "restore"),
        ("data/restore/tiny", "restore"),
        ("data/downloads/a/b", "downloads"),
        ("data", "restore"),
        (".", "restore"),
        ("data/tokens/tiny", "tokens"),
        ("data/logs/tiny", None),
        ("data/tiny", None),
        ("store/tiny", None),
        ("data/restored", None),
    ],
)
def test_what_overlaps_a_working_folder_is_known(
    place: str, folder: str | None, tmp_path: Path
) -> None:
    found = DataDir(tmp_path / "data").overlapped_by(tmp_path / place)
    assert found == (tmp_path / "data" / folder if folder else None)
