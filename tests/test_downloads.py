import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from app.downloads import download
from app.errors import AccessDenied, ConfigError, NoBucket, NotFound, Unavailable

SUFFIXES = (".txt", ".jsonl")


@pytest.fixture
def web() -> Iterator[str]:
    """Answers /200/NAME with NAME, and /STATUS/NAME with the status; /cut/NAME breaks off."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            _, status, name = self.path.split("/")
            self.send_response(200 if status == "cut" else int(status))
            self.send_header("Content-Length", str(len(name) + (status == "cut")))
            self.end_headers()
            self.wfile.write(name.encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def contents(uri: str, data_dir: Path) -> list[str]:
    return [path.read_text() for path in download(uri, data_dir, SUFFIXES)]


def test_a_file_from_the_web_is_fetched_once(web: str, tmp_path: Path) -> None:
    (path,) = download(f"{web}/200/a.txt", tmp_path, SUFFIXES)
    assert path.read_text() == "a.txt"
    assert path.name == "a.txt"
    path.write_text("kept")
    assert contents(f"{web}/200/a.txt", tmp_path) == ["kept"]


@pytest.mark.parametrize(
    ("status", "expected"),
    [(401, AccessDenied), (403, AccessDenied), (404, NotFound), (503, Unavailable)],
)
def test_a_servers_refusals_are_told_apart(
    web: str, tmp_path: Path, status: int, expected: type[Exception]
) -> None:
    with pytest.raises(expected, match=f"^DATASET={web}/{status}/a.txt") as caught:
        download(f"{web}/{status}/a.txt", tmp_path, SUFFIXES)
    assert caught.type is expected


def test_a_connection_that_breaks_off_gives_no_file(web: str, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(Unavailable, match="broke off"):
            download(f"{web}/cut/a.txt", tmp_path, SUFFIXES)


def test_a_server_that_nobody_answers_for_is_unavailable(
    closed_endpoint: str, tmp_path: Path
) -> None:
    with pytest.raises(Unavailable, match="cannot be reached"):
        download(f"{closed_endpoint}/a.txt", tmp_path, SUFFIXES)


def test_another_kind_of_uri_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^DATASET=gs://b/a.txt: URIs start with s3://"):
        download("gs://b/a.txt", tmp_path, SUFFIXES)


@pytest.fixture
def filled(bucket: str, s3_client: Any) -> str:
    for key in ("in/b.txt", "in/a.txt", "in/deep/c.jsonl", "in/notes.md", "inner.txt"):
        s3_client.put_object(Bucket=bucket, Key=key, Body=key.encode())
    return bucket


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in/a.txt", ["in/a.txt"]),
        ("in", ["in/a.txt", "in/b.txt", "in/deep/c.jsonl"]),
        ("in/", ["in/a.txt", "in/b.txt", "in/deep/c.jsonl"]),
        ("in/[ab].txt", ["in/a.txt", "in/b.txt"]),
        ("*.jsonl", ["in/deep/c.jsonl"]),
        ("", ["in/a.txt", "in/b.txt", "in/deep/c.jsonl", "inner.txt"]),
    ],
)
def test_an_object_a_prefix_or_a_glob_names_objects_in_a_bucket(
    filled: str, tmp_path: Path, pattern: str, expected: list[str]
) -> None:
    assert contents(f"s3://{filled}/{pattern}", tmp_path) == expected


def test_an_object_is_fetched_again_only_when_it_changed(
    filled: str, s3_client: Any, tmp_path: Path
) -> None:
    uri = f"s3://{filled}/in/a.txt"
    (path,) = download(uri, tmp_path, SUFFIXES)
    path.write_text("kept")
    assert contents(uri, tmp_path) == ["kept"]
    s3_client.put_object(Bucket=filled, Key="in/a.txt", Body=b"new")
    assert contents(uri, tmp_path) == ["new"]


def test_a_bucket_or_an_object_that_is_not_there_is_not_found(filled: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no object matches"):
        download(f"s3://{filled}/none/", tmp_path, SUFFIXES)
    with pytest.raises(NoBucket, match="no such bucket"):
        download(f"s3://{filled}-missing/in/", tmp_path, SUFFIXES)


@pytest.mark.usefixtures("no_backoff")
def test_a_bucket_that_nobody_answers_for_is_unavailable(
    filled: str, closed_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", closed_endpoint)
    with pytest.raises(Unavailable, match=f"^DATASET=s3://{filled}/in"):
        download(f"s3://{filled}/in", tmp_path, SUFFIXES)
