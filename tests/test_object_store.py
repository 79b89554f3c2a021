"""The stack's object store: its key, and when it counts as ready."""

import stat
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from scripts.object_store import ObjectStore, StoreError, key_of
from tests.support import needs
from tests.support.seaweedfs import free_ports


def test_the_first_start_makes_a_key_that_later_starts_keep(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    made = key_of(file)
    assert len(made[1]) == 40
    assert key_of(file) == made
    assert key_of(tmp_path / "of-another-installation") != made


def test_the_key_file_is_for_the_owner_and_the_group(tmp_path: Path) -> None:
    key_of(tmp_path / "credentials")
    assert [path.name for path in tmp_path.iterdir()] == ["credentials"]
    assert stat.S_IMODE((tmp_path / "credentials").stat().st_mode) & ~0o640 == 0


def test_the_key_is_the_stores_own_and_what_the_job_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-cloud's")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    made = key_of(file)
    assert made[0].startswith("stack-")
    # Empty, as compose hands them on where no other store is named.
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    read = boto3.session.Session().get_credentials()
    assert read is not None and (read.access_key, read.secret_key) == made


@needs.seaweedfs
def test_a_started_store_has_its_bucket_for_its_key_only_and_syncs_what_is_written(
    tmp_path: Path, aws_environment: None
) -> None:
    store = ObjectStore(tmp_path, "one-bucket", ports=free_ports())
    assert not store.healthy()

    def client(key: str) -> Any:
        endpoint = f"http://127.0.0.1:{store.ports.s3}"
        session = boto3.session.Session(key, "secret")
        return session.client("s3", endpoint_url=endpoint)

    with (tmp_path / "log").open("wb") as log:
        server = store.start(("right", "secret"), log)
    try:
        client("right").put_object(Bucket="one-bucket", Key="a", Body=b"content")
        with pytest.raises(ClientError, match="InvalidAccessKeyId"):
            client("wrong").get_object(Bucket="one-bucket", Key="a")
        with pytest.raises(ClientError, match="NoSuchBucket"):
            client("right").put_object(Bucket="other-bucket", Key="a", Body=b"content")
        assert store.healthy()  # which says that the rule for syncing is there
        assert not ObjectStore(tmp_path, "other-bucket", ports=store.ports).healthy()
    finally:
        server.kill()
        server.wait()


@needs.seaweedfs
def test_a_store_that_cannot_start_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (tmp_path / "log").open("wb") as log, pytest.raises(StoreError, match="ended with"):
        ObjectStore(tmp_path / "file", ports=free_ports()).start(("a", "b"), log)
