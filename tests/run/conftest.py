"""What the tests of this room share."""

from pathlib import Path

import pytest

from app.stores.contract import Store
from app.stores.opening import open_store


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    """The empty store of a run in a folder, which is tmp_path/run."""
    return open_store(f"file://{tmp_path}", "run")
