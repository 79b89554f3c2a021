"""Which URIs name files of a server at all."""

from pathlib import Path

import pytest

from app.data.remote_files import list_remote
from app.errors import ConfigError


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("gs://b/a.txt", r"^DATASET=gs://b/a.txt: URIs start with s3://"),
        ("s3://", r"^DATASET=s3:// names no bucket"),
    ],
)
def test_a_uri_that_names_no_server_of_ours_is_refused(
    tmp_path: Path, uri: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        list_remote(uri, tmp_path, lambda: None)
