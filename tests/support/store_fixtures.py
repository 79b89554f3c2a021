"""Fixtures: every kind of store, and the S3 servers on loopback behind them."""

import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import botocore.loaders
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from app.stores.contract import Store
from app.stores.limits import DEFAULT_LIMITS, StoreLimits
from app.stores.opening import open_store
from tests.support.forwarded import Forwarded
from tests.support.interposed import Interposed
from tests.support.s3server import AtomicConditionalWrites, WsgiApp
from tests.support.seaweedfs import KEY, seaweedfs

_AWS = {
    "AWS_ACCESS_KEY_ID": KEY[0],
    "AWS_SECRET_ACCESS_KEY": KEY[1],
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nonexistent/config",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent/credentials",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}


@dataclass(frozen=True)
class S3Server:
    endpoint: str
    interposed: Interposed


@pytest.fixture(scope="session")
def aws_environment() -> Iterator[None]:
    """Credentials that open nothing, and no look at anybody's own configuration."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
            patch.delenv(name, raising=False)
        for name, value in _AWS.items():
            patch.setenv(name, value)
        # Each client would read the description of S3 again, a third of a second.
        loader = botocore.loaders.create_loader()
        patch.setattr("botocore.session.create_loader", lambda *paths: loader)
        yield


@pytest.fixture(scope="session")
def running_s3(aws_environment: None) -> Iterator[S3Server]:
    app: WsgiApp = AtomicConditionalWrites(DomainDispatcherApplication(create_backend_app))
    if under_test := os.environ.get("S3_UNDER_TEST"):
        app = Forwarded(under_test)
    interposed = Interposed(app)
    server = make_server("127.0.0.1", 0, interposed, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield S3Server(f"http://127.0.0.1:{server.server_port}", interposed)
    server.shutdown()
    thread.join()


@pytest.fixture(scope="session")
def s3_server(running_s3: S3Server) -> str:
    """URL of an S3 server; credentials for it are in the environment."""
    return running_s3.endpoint


@pytest.fixture
def s3_answers(running_s3: S3Server) -> Iterator[Interposed]:
    """Lets a test answer in the place of the S3 server."""
    running_s3.interposed.reset()
    yield running_s3.interposed
    running_s3.interposed.reset()


@pytest.fixture(scope="session")
def s3_client(s3_server: str) -> Any:
    """A plain client, to look at a bucket behind the store's back."""
    return boto3.session.Session().client("s3", endpoint_url=s3_server)


@pytest.fixture
def bucket(s3_server: str, s3_client: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a new, empty bucket; AWS_ENDPOINT_URL_S3 points to its server."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server)
    name = f"bucket-{secrets.token_hex(4)}"
    s3_client.create_bucket(Bucket=name)
    yield name
    # The server keeps objects in memory and in /tmp, of hundreds of tests.
    for page in s3_client.get_paginator("list_objects_v2").paginate(Bucket=name):
        for found in page.get("Contents", ()):
            s3_client.delete_object(Bucket=name, Key=found["Key"])


@pytest.fixture(scope="session")
def rclone_server(aws_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a second S3 server, written by others: it checks signatures, not conditions."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root, log = tmp_path_factory.mktemp("rclone"), tmp_path_factory.mktemp("log") / "rclone.log"
    key = f"{_AWS['AWS_ACCESS_KEY_ID']},{_AWS['AWS_SECRET_ACCESS_KEY']}"
    command = ["rclone", "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", key]
    command += ["--vfs-cache-mode", "off", "--config", "", str(root)]
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 30
        while not _listens(port):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def rclone_bucket(rclone_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a new, empty bucket of rclone's; AWS_ENDPOINT_URL_S3 points to it."""
    return new_bucket(rclone_server, monkeypatch)


@pytest.fixture(scope="session")
def seaweedfs_server(
    aws_environment: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """URL of the S3 server that the stack has."""
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as endpoint:
        yield endpoint


@pytest.fixture
def seaweedfs_bucket(seaweedfs_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a new, empty bucket of SeaweedFS's; AWS_ENDPOINT_URL_S3 points to it."""
    name = new_bucket(seaweedfs_server, monkeypatch)
    yield name
    # Each takes a volume of 64 MiB of what is free.
    client: Any = boto3.session.Session().client("s3", endpoint_url=seaweedfs_server)
    client.delete_bucket(Bucket=name)


def new_bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    name = f"bucket-{secrets.token_hex(4)}"
    client: Any = boto3.session.Session().client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket=name)
    return name


@pytest.fixture
def store_limits() -> StoreLimits:
    """The limits of `store`: a test that needs other ones is parametrized with them."""
    return DEFAULT_LIMITS


@pytest.fixture(params=["local", "s3", "seaweedfs", "rclone"])
def store(request: pytest.FixtureRequest, tmp_path: Path, store_limits: StoreLimits) -> Store:
    """Each kind of store in turn, empty: a folder, and three independent S3 servers."""
    if request.param == "local":
        return open_store(f"file://{tmp_path}/store", "run", store_limits)
    bucket = "bucket" if request.param == "s3" else f"{request.param}_bucket"
    uri = f"s3://{request.getfixturevalue(bucket)}/some/prefix"
    store = open_store(uri, "run", store_limits)
    if request.param == "rclone" or "S3_UNDER_TEST" in os.environ:
        store.check()  # finds out whether conditional writes are to be trusted here
    return store


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's retries without the pauses between them."""
    monkeypatch.setattr(
        "botocore.retries.standard.ExponentialBackoff.delay_amount", lambda self, context: 0
    )


@pytest.fixture
def closed_endpoint() -> Iterator[str]:
    """A URL on loopback that refuses connections: the port is taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
