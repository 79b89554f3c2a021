import os
import shutil
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
