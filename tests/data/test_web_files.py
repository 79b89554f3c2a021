"""Files of the web: their addresses, what a server answers, and transfers that break off."""

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.data.downloads import RemoteFiles
from app.data.limits import DataLimits
from app.data.retries import PAUSES
from app.data.sources import list_remote
from app.errors import AccessDenied, ConfigError, NotFound, Unavailable
from tests.support.corpus_files import ROWS, jsonl
from tests.support.source_pieces import texts
from tests.support.web_server import Web, web_server

CONTENT = b"".join(b"line %d of a file\n" % number for number in range(300))
PAGE = b"\n<!DOCTYPE html><html><body>Please log in</body></html>"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with web_server() as told:
        told.files["a.txt"] = CONTENT
        yield told


def listed(uri: str, data_dir: Path, sleep: Callable[[float], None] | None = None) -> RemoteFiles:
    return list_remote(uri, data_dir, lambda: None, sleep=sleep)


def contents(uri: str, data_dir: Path) -> list[bytes]:
    return [path.read_bytes() for path in listed(uri, data_dir).paths(0)]


def on_disk(data_dir: Path) -> list[str]:
    return sorted(p.name for p in data_dir.rglob("*") if p.is_file() and p.name != ".lock")


def test_a_file_from_the_web_is_fetched_and_removed_when_it_was_read(
    web: Web, tmp_path: Path
) -> None:
    paths = listed(f"{web.uri}/200/a.txt", tmp_path).paths(0)
    path = next(paths)
    assert path.read_bytes() == CONTENT
    assert on_disk(tmp_path) == [path.name]
    assert next(paths, None) is None
    assert on_disk(tmp_path) == []


def test_an_empty_file_from_the_web_is_empty(web: Web, tmp_path: Path) -> None:
    web.files["e.txt"] = b""
    assert contents(f"{web.uri}/200/e.txt", tmp_path) == [b""]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, ConfigError),
        (401, AccessDenied),
        (403, AccessDenied),
        (404, NotFound),
        (429, Unavailable),
        (503, Unavailable),
    ],
)
def test_a_servers_refusals_are_told_apart(
    web: Web, tmp_path: Path, status: int, expected: type[Exception]
) -> None:
    with pytest.raises(expected, match=f"^DATASET={web.uri}/{status}/a.txt") as caught:
        listed(f"{web.uri}/{status}/a.txt", tmp_path)
    assert caught.type is expected


@pytest.mark.parametrize("ranges", [True, False])
def test_a_transfer_that_breaks_off_goes_on_where_it_was(
    web: Web, tmp_path: Path, ranges: bool
) -> None:
    waits: list[float] = []

    def pause(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            web.cut_after = None

    files = listed(f"{web.uri}/200/a.txt", tmp_path, pause)
    web.ranges, web.cut_after = ranges, 1000
    assert next(files.paths(0)).read_bytes() == CONTENT
    assert len(waits) == 2
    asked = (
        ["", "bytes=1000-", "bytes=2000-"] if ranges else ["", "bytes=1000-", "", "bytes=1000-", ""]
    )
    assert web.requests[1:] == asked


def test_each_block_that_is_fetched_is_a_sign_of_life(web: Web, tmp_path: Path) -> None:
    seen: list[None] = []
    uri = f"{web.uri}/200/a.txt"
    limits = DataLimits(fetched_bytes=1000)
    files = list_remote(uri, tmp_path, lambda: seen.append(None), limits)
    assert not seen
    next(files.paths(0))
    assert len(seen) == -(-len(CONTENT) // 1000)


def test_a_transfer_that_always_breaks_off_is_given_up(web: Web, tmp_path: Path) -> None:
    waits: list[float] = []
    files = listed(f"{web.uri}/200/a.txt", tmp_path, waits.append)
    web.cut_after = 0
    with pytest.raises(Unavailable, match=r"a\.txt: the connection broke off"):
        next(files.paths(0))
    assert waits == list(PAUSES)
    assert on_disk(tmp_path) == []


def test_a_file_that_is_replaced_on_the_web_is_an_error_that_says_so(
    web: Web, tmp_path: Path
) -> None:
    files = listed(f"{web.uri}/200/a.txt", tmp_path)
    web.files["a.txt"] = CONTENT[::-1]
    with pytest.raises(ConfigError, match=r"a\.txt was replaced while the corpus was read"):
        next(files.paths(0))


def test_a_server_that_tells_no_version_is_refused(web: Web, tmp_path: Path) -> None:
    web.tags = False
    with pytest.raises(ConfigError, match="neither ETag nor Last-Modified"):
        listed(f"{web.uri}/200/a.txt", tmp_path)


def test_a_server_that_nobody_answers_for_is_unavailable(
    closed_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(Unavailable, match="cannot be reached"):
        listed(f"{closed_endpoint}/a.txt", tmp_path)


def test_what_is_no_address_is_refused_without_its_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no address of a web server$") as caught:
        listed("http://host:verysecret/a b.txt", tmp_path)
    assert caught.value.__cause__ is None and "port" not in str(caught.value)


@pytest.mark.parametrize("name", ["bücher 1.jsonl", "a+b&c.jsonl", "100%.jsonl", "日本.JSONL"])
def test_an_address_is_read_as_a_browser_shows_it(web: Web, tmp_path: Path, name: str) -> None:
    web.files[name] = jsonl(ROWS)
    assert texts(f"{web.uri}/200/{name}", data_dir=tmp_path) == ROWS


def test_what_is_encoded_in_an_address_stays_so(web: Web, tmp_path: Path) -> None:
    web.files["a b.jsonl"] = jsonl(ROWS)
    assert [file.name for file in listed(f"{web.uri}/200/a%20b.jsonl", tmp_path).listed] == [
        "a b.jsonl"
    ]


def test_the_ending_is_that_of_the_path_and_not_of_what_stands_behind_it(
    web: Web, tmp_path: Path
) -> None:
    web.files["a.jsonl"] = jsonl(ROWS)
    web.files["b.jsonl.gz"] = gzip.compress(jsonl(ROWS))
    for name in ("a.jsonl", "b.jsonl.gz"):
        assert texts(f"{web.uri}/200/{name}?sig=a/b.txt&x=1#top", data_dir=tmp_path) == ROWS


def test_a_name_that_only_the_server_tells_has_an_ending_too(web: Web, tmp_path: Path) -> None:
    web.files["download"] = web.files["a.jsonl"] = jsonl(ROWS)
    with pytest.raises(ConfigError, match=r"/download: files end with \.txt"):
        listed(f"{web.uri}/200/download", tmp_path)
    web.moved["latest"] = f"{web.uri}/200/a.jsonl"
    assert texts(f"{web.uri}/200/latest", data_dir=tmp_path) == ROWS
    web.headers["Content-Disposition"] = 'attachment; filename="a.jsonl"'
    assert texts(f"{web.uri}/200/download", data_dir=tmp_path) == ROWS


def test_the_job_names_itself_to_a_server(web: Web, tmp_path: Path) -> None:
    contents(f"{web.uri}/200/a.txt", tmp_path)
    assert set(web.agents) == {"smollm2-spot-trainer"}


def test_a_web_page_in_the_place_of_a_file_is_refused(web: Web, tmp_path: Path) -> None:
    web.files["a.txt"] = web.files["a.jsonl"] = PAGE
    web.headers["Content-Type"] = "text/html; charset=utf-8"
    for name in ("a.txt", "a.jsonl"):
        with pytest.raises(ConfigError, match=rf"{name}: the server answers with a web page"):
            listed(f"{web.uri}/200/{name}", tmp_path)
    web.headers["Content-Type"] = "application/octet-stream"
    with pytest.raises(ConfigError, match="the server answers with a web page"):
        listed(f"{web.uri}/200/a.jsonl", tmp_path)


def test_a_text_that_is_called_a_page_by_mistake_is_read(web: Web, tmp_path: Path) -> None:
    web.headers["Content-Type"] = "text/html"
    assert contents(f"{web.uri}/200/a.txt", tmp_path) == [CONTENT]


def test_a_pointer_in_the_place_of_a_file_is_refused_before_a_step(
    web: Web, tmp_path: Path
) -> None:
    web.files["a.parquet"] = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    with pytest.raises(ConfigError, match=r"a\.parquet is a pointer .* git lfs pull"):
        listed(f"{web.uri}/200/a.parquet", tmp_path)


def test_what_a_server_compresses_on_the_way_is_read(web: Web, tmp_path: Path) -> None:
    web.headers["Content-Encoding"] = "gzip"
    web.files["a.jsonl"] = web.files["b.jsonl.gz"] = gzip.compress(jsonl(ROWS))
    for name in ("a.jsonl", "b.jsonl.gz"):
        assert texts(f"{web.uri}/200/{name}", data_dir=tmp_path) == ROWS
    web.headers["Content-Encoding"] = "br"
    with pytest.raises(ConfigError, match="Content-Encoding: br, which is not read"):
        listed(f"{web.uri}/200/a.jsonl", tmp_path)


def test_a_star_in_an_address_that_is_not_found_is_explained(web: Web, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"\(404\); a web server lists no files"):
        listed(f"{web.uri}/404/*.txt", tmp_path)


@pytest.mark.parametrize("uri", ["http://", "http:///a.txt", "http://..a/a.txt"])
def test_an_address_without_a_server_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ConfigError, match=r"is no address of a web server$"):
        listed(uri, tmp_path)
