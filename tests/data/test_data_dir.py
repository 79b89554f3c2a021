import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from app.data.data_dir import own_folder


@pytest.mark.parametrize("moment", ["before it is opened", "before it is removed"])
def test_a_folder_that_its_process_removes_meanwhile_is_no_failure(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    another = tmp_path / "another"
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
