"""A client for S3: where its credentials come from, and how it addresses a bucket."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.errors import AccessDenied, ConfigError, NoCredentials
from app.stores.limits import StoreLimits
from app.stores.opening import open_store
from tests.support.interposed import Answer, Interposed
from tests.support.metadata_server import FakeCloud, Reply, fake_cloud
from tests.support.store_contents import keys

AT_ONCE = StoreLimits(credentials_wait=0, credentials_pause=0)
SOON = StoreLimits(credentials_wait=30, credentials_pause=0)
ROLE = "/latest/meta-data/iam/security-credentials/"


@pytest.fixture
def no_keys(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")


@pytest.fixture
def cloud(no_keys: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCloud]:
    """A machine whose credentials come from its metadata server."""
    with fake_cloud() as cloud:
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{cloud.address}/")
        yield cloud


@pytest.mark.usefixtures("no_keys")
def test_without_any_credentials_it_is_said_at_once_and_given_up_after_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(NoCredentials, match=r"no AWS credentials yet.*AWS_ACCESS_KEY_ID") as caught:
        open_store("s3://bucket", "run", StoreLimits(credentials_wait=0.1, credentials_pause=0.01))
    assert caught.value.exit_code == 75
    said = [record.message for record in caplog.records if record.name.startswith("app.")]
    assert len(said) == 1 and "looked for again for 0.1 s" in said[0]


def test_credentials_that_come_later_than_the_process_are_waited_for(
    bucket: str, cloud: FakeCloud
) -> None:
    def booting(path: str) -> Reply | None:
        if not path.startswith(ROLE):
            return None
        if len(cloud.requests) < 12:
            return 404, b"not yet"
        if path == ROLE:
            return 200, b"trainer"
        keys = {"AccessKeyId": "testing", "SecretAccessKey": "testing-secret", "Token": "t"}
        return 200, json.dumps(keys | {"Expiration": "2100-01-01T00:00:00Z"}).encode()

    cloud.instead = booting
    store = open_store(f"s3://{bucket}", "run", SOON)
    store.check()
    assert keys(store) == []


@pytest.mark.usefixtures("no_keys")
@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "AccessDenied", AccessDenied),
        (400, "InvalidIdentityToken", NoCredentials),
        (400, "IDPCommunicationError", NoCredentials),
    ],
)
def test_only_an_outright_refusal_of_a_role_is_access_denied(
    s3_server: str,
    s3_answers: Interposed,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    status: int,
    code: str,
    expected: type[Exception],
) -> None:
    (tmp_path / "token").write_text("token")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/train")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", s3_server)
    answer = f"<ErrorResponse><Error><Code>{code}</Code></Error></ErrorResponse>"
    s3_answers.answering = lambda environ: (status, answer)
    with pytest.raises(expected) as caught:
        open_store("s3://bucket", "run", AT_ONCE)
    assert type(caught.value) is expected


@pytest.mark.usefixtures("no_keys")
def test_a_token_file_that_vanishes_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/train")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "gone"))
    with pytest.raises(NoCredentials, match=f"{tmp_path}/gone"):
        open_store("s3://bucket", "run", AT_ONCE)


@pytest.mark.usefixtures("no_backoff")
def test_a_session_token_that_no_header_can_hold_is_never_quoted(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "secret-token\n")
    with pytest.raises(ConfigError, match="AWS_SESSION_TOKEN") as caught:
        open_store(f"s3://{bucket}", "run").check()
    assert "secret-token" not in str(caught.value)


def only_virtual(bucket: str, environ: dict[str, Any]) -> Answer | None:
    """A server that wants the bucket in the host's name, in front of one that does not."""
    if environ["HTTP_HOST"].startswith(f"{bucket}."):
        for name in ("PATH_INFO", "RAW_URI", "REQUEST_URI"):
            environ[name] = f"/{bucket}{environ[name]}"
        environ["HTTP_HOST"] = "127.0.0.1"
        return None
    return 403, "<Error><Code>SecondLevelDomainForbidden</Code></Error>"


def test_a_server_that_wants_the_bucket_in_the_hosts_name_gets_it_there(
    bucket: str,
    s3_server: str,
    s3_answers: Interposed,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    resolve = socket.getaddrinfo

    def resolves_all(host: str, *rest: Any, **named: Any) -> Any:
        return resolve("127.0.0.1" if host.endswith("store.test") else host, *rest, **named)

    monkeypatch.setattr("socket.getaddrinfo", resolves_all)
    monkeypatch.setenv("NO_PROXY", "*")
    url = s3_server.replace("127.0.0.1", "store.test")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
    s3_answers.answering = lambda environ: only_virtual(bucket, environ)
    caplog.set_level("INFO", "app")
    store = open_store(f"s3://{bucket}", "run")
    store.check()
    store.put("a", [bytes(9 * 2**20)])
    store.move("a", "b")
    store.fetch("b", tmp_path)
    assert keys(store) == ["b"]
    assert caplog.text.count("wants the bucket in the host's name") == 1
    assert store.conditional_writes and store.deletes


def test_an_ip_address_that_wants_the_bucket_in_its_name_is_not_called_a_wrong_key(
    bucket: str, s3_answers: Interposed
) -> None:
    s3_answers.answering = lambda environ: only_virtual(bucket, environ)
    with pytest.raises(ConfigError, match="addressing_style = virtual"):
        open_store(f"s3://{bucket}", "run").check()
