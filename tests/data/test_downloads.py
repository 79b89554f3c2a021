"""Objects of a bucket: listed, fetched one by one while they are read, and gone on with."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.data.downloads import RemoteFiles
from app.data.retries import PAUSES
from app.data.sources import list_remote, pin_source
from app.errors import ConfigError, NoBucket, NotFound, Unavailable
from app.settings.variables import DataSettings
from tests.support.corpus_files import ROWS, jsonl
from tests.support.interposed import Interposed
from tests.support.source_pieces import documents, texts


def listed(uri: str, data_dir: Path, sleep: Callable[[float], None] | None = None) -> RemoteFiles:
    return list_remote(uri, data_dir, lambda: None, sleep=sleep)


def names(uri: str, data_dir: Path) -> list[str]:
    return [file.name for file in listed(uri, data_dir).listed]


def contents(uri: str, data_dir: Path) -> list[bytes]:
    return [path.read_bytes() for path in listed(uri, data_dir).paths(0)]


def on_disk(data_dir: Path) -> list[str]:
    return sorted(p.name for p in data_dir.rglob("*") if p.is_file() and p.name != ".lock")


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
        ("*/*/*.jsonl", ["in/deep/c.jsonl"]),
        ("in/*", ["in/a.txt", "in/b.txt"]),
        ("**/*.jsonl", ["in/deep/c.jsonl"]),
        ("", ["in/a.txt", "in/b.txt", "in/deep/c.jsonl", "inner.txt"]),
    ],
)
def test_an_object_a_prefix_or_a_glob_names_objects_in_a_bucket(
    filled: str, tmp_path: Path, pattern: str, expected: list[str]
) -> None:
    read = contents(f"s3://{filled}/{pattern}", tmp_path)
    assert [content.decode() for content in read] == expected


def test_names_with_signs_of_a_pattern_and_markers_of_folders_are_no_obstacle(
    bucket: str, s3_client: Any, tmp_path: Path
) -> None:
    long_name = f"{'x' * 250}.txt"  # too long for a copy with anything before it
    for key in ("in/part [1].txt", "in/part 1.txt", f"in/{long_name}"):
        s3_client.put_object(Bucket=bucket, Key=key, Body=key.encode())
    s3_client.put_object(Bucket=bucket, Key="in/", Body=b"")
    assert names(f"s3://{bucket}/in/part [1].txt", tmp_path) == ["part [1].txt"]
    assert names(f"S3://{bucket}/in/part [1]*", tmp_path) == ["part 1.txt"]
    assert len(contents(f"s3://{bucket}/in/", tmp_path)) == 3


def test_objects_that_are_stored_compressed_are_read(
    bucket: str, s3_client: Any, tmp_path: Path
) -> None:
    s3_client.put_object(
        Bucket=bucket, Key="a.jsonl", Body=gzip.compress(jsonl(ROWS)), ContentEncoding="gzip"
    )
    assert texts(f"s3://{bucket}/a.jsonl", data_dir=tmp_path) == ROWS


def test_objects_are_named_below_the_folder_that_they_share(filled: str, tmp_path: Path) -> None:
    assert names(f"s3://{filled}/in", tmp_path) == ["a.txt", "b.txt", "deep/c.jsonl"]
    assert names(f"s3://{filled}/in/a.txt", tmp_path) == ["a.txt"]


def test_a_bucket_or_an_object_that_is_not_there_is_not_found(filled: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"does not exist$"):
        listed(f"s3://{filled}/none/", tmp_path)
    with pytest.raises(NoBucket, match="no such bucket"):
        listed(f"s3://{filled}-missing/in/", tmp_path)


@pytest.mark.usefixtures("no_backoff")
def test_a_bucket_that_nobody_answers_for_is_unavailable(
    filled: str, closed_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", closed_endpoint)
    with pytest.raises(Unavailable, match=f"^DATASET=s3://{filled}/in"):
        listed(f"s3://{filled}/in", tmp_path)


@pytest.fixture
def corpus(bucket: str, s3_client: Any) -> str:
    for number in range(6):
        rows = b"".join(b'{"text": "%d %d"}\n' % (number, row) for row in range(3))
        s3_client.put_object(Bucket=bucket, Key=f"in/{number}.jsonl", Body=rows)
    return f"s3://{bucket}/in"


def test_objects_are_fetched_in_turn_and_two_at_most_are_on_the_disk(
    corpus: str, tmp_path: Path, s3_answers: Interposed
) -> None:
    pieces = documents(DataSettings(dataset=corpus, data_dir=tmp_path))
    fetched = [request for request in s3_answers.requests if request.endswith(".jsonl")]
    assert fetched == [], "listing fetches nothing"
    for number in range(6):
        for row in range(3):
            assert next(pieces).text == f"{number} {row}"
            assert len(on_disk(tmp_path)) <= 2
            seen = [r for r in s3_answers.requests if r.endswith(".jsonl")]
            assert len(seen) <= number + 2
    assert next(pieces, None) is None
    assert on_disk(tmp_path) == []


def test_going_on_fetches_nothing_that_was_read(
    corpus: str, tmp_path: Path, s3_answers: Interposed
) -> None:
    settings = DataSettings(dataset=corpus, data_dir=tmp_path)
    pieces = documents(settings)
    for _ in range(13):
        next(pieces)
    pieces.close()
    assert on_disk(tmp_path) == []
    s3_answers.requests.clear()
    rest = documents(settings, pieces.position)
    assert [piece.text for piece in rest] == ["4 1", "4 2", "5 0", "5 1", "5 2"]
    fetched = {r.rpartition("/")[2] for r in s3_answers.requests if r.endswith(".jsonl")}
    assert fetched == {"4.jsonl", "5.jsonl"}


def test_an_object_that_is_replaced_in_the_middle_is_an_error_that_says_so(
    corpus: str, tmp_path: Path, s3_client: Any
) -> None:
    pieces = documents(DataSettings(dataset=corpus, data_dir=tmp_path))
    assert next(pieces).text == "0 0"
    bucket = corpus.split("/")[2]
    s3_client.put_object(Bucket=bucket, Key="in/4.jsonl", Body=b'{"text": "other"}\n')
    with pytest.raises(ConfigError, match=r"in/4\.jsonl was replaced while the corpus was read"):
        list(pieces)


def test_a_server_that_knows_no_conditions_is_found_out_by_the_etag(
    rclone_bucket: str, tmp_path: Path
) -> None:
    import boto3

    client: Any = boto3.session.Session().client("s3")
    client.put_object(Bucket=rclone_bucket, Key="a.txt", Body=b"before")
    uri = f"s3://{rclone_bucket}/a.txt"
    assert contents(uri, tmp_path) == [b"before"]
    files = listed(uri, tmp_path)
    client.put_object(Bucket=rclone_bucket, Key="a.txt", Body=b"behind")
    with pytest.raises(ConfigError, match=r"a\.txt was replaced"):
        next(files.paths(0))


@pytest.mark.usefixtures("no_backoff")
def test_objects_that_are_not_served_for_a_while_are_waited_for(
    corpus: str, tmp_path: Path, s3_answers: Interposed
) -> None:
    waits: list[float] = []

    def back(seconds: float) -> None:
        waits.append(seconds)
        s3_answers.reset()

    pieces = documents(DataSettings(dataset=corpus, data_dir=tmp_path), sleep=back)
    s3_answers.answering = lambda environ: (
        (503, "") if environ["PATH_INFO"].endswith("3.jsonl") else None
    )
    assert len(list(pieces)) == 18
    assert waits == [PAUSES[0]]


def test_an_object_that_is_added_after_the_listing_does_not_move_the_others(
    corpus: str, tmp_path: Path, s3_client: Any
) -> None:
    pinned = pin_source(DataSettings(dataset=corpus, data_dir=tmp_path))
    body = b'{"text": "added"}\n'
    s3_client.put_object(Bucket=corpus.split("/")[2], Key="in/00.jsonl", Body=body)
    assert [piece.text for piece in pinned.pieces({"file": 4, "offset": 0})][:2] == ["4 0", "4 1"]
    assert "added" not in {piece.text for piece in pinned.pieces()}


def test_the_fingerprint_of_objects_is_their_etags_and_fetches_nothing(
    corpus: str, tmp_path: Path, s3_client: Any, s3_answers: Interposed
) -> None:
    settings = DataSettings(dataset=corpus, data_dir=tmp_path)
    before = pin_source(settings)
    assert list(before.parts) == [*(f"{number}.jsonl" for number in range(6)), "TEXT_COLUMN"]
    assert not [request for request in s3_answers.requests if request.endswith(".jsonl")]
    bucket = corpus.split("/")[2]
    s3_client.put_object(Bucket=bucket, Key="in/4.jsonl", Body=b'{"text": "other"}\n')
    after = pin_source(settings)
    assert after.fingerprint != before.fingerprint
    assert {n for n in after.parts if after.parts[n] != before.parts[n]} == {"4.jsonl"}
