"""Which store CHECKPOINT_URI names, and what it cannot name."""

from pathlib import Path

import pytest

from app.errors import ConfigError
from app.stores.opening import open_store


@pytest.mark.parametrize("uri", ["", "http://x/y", "file://host/x", "file:x", "s3://", "s3:///x"])
def test_a_uri_of_no_store_is_a_configuration_error(uri: str) -> None:
    with pytest.raises(ConfigError, match="CHECKPOINT_URI"):
        open_store(uri, "run")


def test_a_run_name_cannot_leave_the_uri(tmp_path: Path) -> None:
    for name in ("..", "a/b", "", "/etc"):
        with pytest.raises(ConfigError, match="RUN_NAME"):
            open_store(f"file://{tmp_path}", name)
