"""Which store CHECKPOINT_URI names, and what it cannot name."""

from pathlib import Path

import pytest

from app.errors import ConfigError
from app.stores.opening import open_place, open_store


@pytest.mark.parametrize("uri", ["", "http://x/y", "file://host/x", "file:x", "s3://", "s3:///x"])
def test_a_uri_of_no_store_is_a_configuration_error(uri: str) -> None:
    with pytest.raises(ConfigError, match="CHECKPOINT_URI"):
        open_store(uri, "run")


def test_a_run_name_cannot_leave_the_uri(tmp_path: Path) -> None:
    for name in ("..", "a/b", "", "/etc"):
        with pytest.raises(ConfigError, match="RUN_NAME"):
            open_store(f"file://{tmp_path}", name)


@pytest.mark.parametrize("below", ["", "/a/b"])
@pytest.mark.parametrize("place", ["volume", "s3"])
def test_a_place_names_the_folders_of_its_runs(
    place: str, below: str, bucket: str, tmp_path: Path
) -> None:
    uri = (f"s3://{bucket}" if place == "s3" else f"file://{tmp_path}/new") + below
    assert open_place(uri).folders() == []
    for name in ("b", "a"):
        open_store(uri, name).put("checkpoints/x/y", [b"content"])
    open_place(uri).put("no-folder", [b"content"])
    assert open_place(uri).folders() == ["a", "b"]
    assert open_place(uri).get("a/checkpoints/x/y")[0] == b"content"
