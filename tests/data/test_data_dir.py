import shutil
from pathlib import Path

import pytest

from app.data import data_dir as locks
from app.data.data_dir import own_folder


@pytest.mark.parametrize("moment", ["before it is opened", "before it is removed"])
def test_a_folder_that_its_process_removes_meanwhile_is_no_failure(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "another").mkdir()
    try_lock = locks._try_lock

    def race(directory: Path) -> int | None:
        if moment == "before it is opened" and directory.name == "another":
            directory.rmdir()
        descriptor = try_lock(directory)
        if directory.name == "another":
            directory.rmdir()
        return descriptor

    monkeypatch.setattr(locks, "_try_lock", race)
    with own_folder(tmp_path) as folder:
        assert folder.is_dir()
        shutil.copy(__file__, folder)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
