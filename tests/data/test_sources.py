"""What DATASET is taken for, its fingerprint by parts, and going on inside a document."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.data.limits import DataLimits
from app.data.sources import is_hub_id, list_remote, pin_source
from app.data.tokenizer import read_tokenizer
from app.errors import ConfigError
from tests.support.corpus_files import ROWS, jsonl, write_rows
from tests.support.prepared import prepare
from tests.support.source_pieces import documents, source, texts


def test_a_remote_file_is_read_like_a_local_one(
    bucket: str, s3_client: Any, tmp_path: Path
) -> None:
    s3_client.put_object(Bucket=bucket, Key="in/a.jsonl", Body=jsonl(ROWS))
    s3_client.put_object(Bucket=bucket, Key="in/a.csv", Body=b"text")
    assert texts(f"s3://{bucket}/in", data_dir=tmp_path) == ROWS
    with pytest.raises(ConfigError, match=r"^DATASET=s3://.*/a.csv: files end with .txt"):
        texts(f"s3://{bucket}/in/a.csv", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("roneneldan/TinyStories", True),
        ("owner/name@main", True),
        ("imdb", True),
        ("./name", False),
        ("/data/text", False),
        ("~/text", False),
        ("corpus.jsonl", False),
        ("folder/corpus.txt.gz", False),
        ("a/b/c", False),
        ("folder/*", False),
        ("s3://bucket/prefix", False),
    ],
)
def test_what_looks_like_a_path_is_never_taken_for_a_hub_id(dataset: str, expected: bool) -> None:
    assert is_hub_id(dataset) is expected


def test_a_folder_that_exists_is_never_taken_for_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert not is_hub_id("owner/name")


def test_the_builtin_corpus_needs_nothing() -> None:
    pieces = documents(source("builtin"))
    first, position, second = next(pieces), pieces.position, next(pieces)
    assert first != second
    assert next(documents(source("builtin"))) == first
    assert next(documents(source("builtin"), position)) == second


def test_the_parts_of_a_source_are_named_with_a_digest_each(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_rows(tmp_path / "in" / "a.jsonl", ROWS)
    write_rows(tmp_path / "b.jsonl", ROWS)
    before = pin_source(source(tmp_path)).parts
    assert list(before) == ["b.jsonl", "in/a.jsonl", "TEXT_COLUMN"]
    write_rows(tmp_path / "b.jsonl", ROWS[1:])
    after = pin_source(source(tmp_path)).parts
    assert {name for name in before if before[name] != after[name]} == {"b.jsonl"}
    assert all(len(digest) == 16 for digest in after.values())


def test_a_document_longer_than_a_shard_is_gone_on_with_in_its_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_tokenizer: Path
) -> None:
    limits = DataLimits(long_row=1000, piece_size=200, batch_characters=500)
    tokenizer = read_tokenizer(small_tokenizer, "")
    path = write_rows(tmp_path / "a.jsonl", ["short", "some words in a line\n" * 300, "last"])

    def tokens(folder: str, needed: int | None) -> list[int]:
        data = source(path, data_dir=tmp_path / folder)
        train = prepare(data, tokenizer, needed, shard_tokens=400, limits=limits).train
        return train.read(0, train.n_tokens).tolist()

    first = tokens("in-turns", 1)
    index = json.loads(next(tmp_path.glob("in-turns/tokens/*/index.json")).read_text())
    assert index["seals"][-1]["position"]["part"] > 0
    both, at_once = tokens("in-turns", None), tokens("at-once", None)
    assert both == at_once
    assert both[: len(first)] == first
    assert len(first) < len(both) - 400
    end = tokenizer.eos_token_id
    assert both.count(end) == 3


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
