import gzip
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import AccessDenied, ConfigError, Damaged, NotFound, Unavailable
from app.sections import DataSettings
from app.sources import (
    PIECE_CHARACTERS,
    Piece,
    documents,
    is_hub_id,
    pin_source,
    source_fingerprint,
)
from tests.hubserver import REVISION, hub, use_endpoint

ROWS = ["first text", "", "second\ntext", "drítter – text 日本"]
HUB_FILES = {"train.jsonl": b"".join(b'{"text": "row %d", "n": 1}\n' % i for i in range(30))}


def source(dataset: object, **more: Any) -> DataSettings:
    return DataSettings(dataset=str(dataset), **more)


def texts(dataset: object, skip: int = 0, **more: Any) -> list[str]:
    return [piece.text for piece in documents(source(dataset, **more), skip)]


def jsonl(rows: Iterable[object], column: str = "text") -> bytes:
    return b"".join(json.dumps({"id": 1, column: row}).encode() + b"\n" for row in rows)


def write_zst(path: Path, data: bytes) -> None:
    with pa.output_stream(str(path), compression="zstd") as stream:
        stream.write(data)


def write_rows(path: Path, rows: list[str]) -> Path:
    if path.name.endswith(".parquet"):
        pq.write_table(pa.table({"id": [1] * len(rows), "text": rows}), path)
    elif path.name.endswith(".jsonl"):
        path.write_bytes(jsonl(rows))
    elif path.name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress(jsonl(rows)))
    else:
        write_zst(path, jsonl(rows))
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_each_row_is_a_document(tmp_path: Path, name: str) -> None:
    path = write_rows(tmp_path / name, ROWS)
    assert list(documents(source(path))) == [Piece(row) for row in ROWS]
    assert texts(path, skip=2) == ROWS[2:]
    assert texts(path, skip=9) == []


@given(st.text(st.sampled_from("ab\n\r é日"), max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_pieces_of_a_text_file_are_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr("app.sources.PIECE_CHARACTERS", 5)
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    pieces = list(documents(source(path)))
    assert "".join(piece.text for piece in pieces) == text
    assert all(0 < len(piece.text) < 10 for piece in pieces)
    assert [piece.starts_document for piece in pieces] == [True, *[False] * len(pieces)][:-1]
    assert [piece.ends_document for piece in pieces] == [*[False] * len(pieces), True][1:]


def test_a_long_text_file_is_cut_at_line_ends(tmp_path: Path) -> None:
    line = "x" * 99 + "\n"
    path = tmp_path / "a.txt"
    path.write_text(line * 100)
    pieces = texts(path)
    assert len(pieces) > 2
    assert all(len(piece) % 100 == 0 and piece.endswith("\n") for piece in pieces)
    assert all(PIECE_CHARACTERS <= len(piece) < PIECE_CHARACTERS + 100 for piece in pieces[:-1])
    assert texts(path, skip=2) == pieces[2:]


def test_a_compressed_text_file_is_a_document_and_a_byte_order_mark_is_not_text(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfhello"))
    assert list(documents(source(tmp_path / "a.txt.gz"))) == [Piece("hello")]


def test_a_folder_gives_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("c.txt", "b/2.txt", "a.txt", "b/.3.txt", ".hidden/4.txt", "notes.md"):
        (tmp_path / name).write_text(name)
    assert texts(tmp_path) == ["a.txt", "b/2.txt", "c.txt"]
    assert texts(f"{tmp_path}/**/*.txt") == ["a.txt", "b/2.txt", "c.txt"]
    assert texts(f"{tmp_path}/[ab].txt") == ["a.txt"]
    assert texts(f"file://{tmp_path}/a.txt") == ["a.txt"]


def test_half_a_surrogate_pair_in_json_becomes_a_replacement_character(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\\ud83d b\\ud83d\\ude00"}\n')
    assert texts(path) == ["a\ufffd b😀"]


def test_another_text_column_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(["x", None], column="body"))
    assert texts(tmp_path / "a.jsonl", text_column="body") == ["x", ""]


def test_a_missing_text_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.parquet"):
        path = write_rows(tmp_path / name, ROWS)
        with pytest.raises(ConfigError, match=r"^TEXT_COLUMN=body is not in .*; it has id, text$"):
            texts(path, text_column="body")
        with pytest.raises(ConfigError, match=r"^TEXT_COLUMN=id of .* holds int, not text$"):
            texts(path, text_column="id")


def bad_utf8(path: Path) -> None:
    path.write_bytes(b"good\n\xff\xfe\n")


def half_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(os.urandom(5000).hex().encode())[:3000])


def half_parquet(path: Path) -> None:
    write_rows(path, ROWS)
    path.write_bytes(path.read_bytes()[:-30])


def broken_page(path: Path) -> None:
    write_rows(path, ROWS * 50)
    data = bytearray(path.read_bytes())
    data[40:200] = b"\xff" * 160
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("a.txt", bad_utf8, "is not UTF-8 text"),
        ("a.jsonl", bad_utf8, "is not UTF-8 text"),
        ("a.txt.gz", half_gzip, "cannot be read"),
        ("a.txt.gz", lambda path: path.write_bytes(b"plain"), "cannot be read"),
        ("a.jsonl.zst", lambda path: path.write_bytes(b"plain"), "cannot be read"),
        ("a.parquet", half_parquet, "cannot be read"),
        ("a.parquet", broken_page, "cannot be read"),
        ("a.parquet", lambda path: path.write_bytes(b""), "cannot be read"),
        ("a.jsonl", lambda path: path.write_text('{"text": 1'), ", line 1 is not JSON"),
        ("a.jsonl", lambda path: path.write_text('{"text": "a"}\n\n3\n'), ", line 3 is not a JSON"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, spoil: Any, message: str) -> None:
    path = tmp_path / name
    spoil(path)
    with pytest.raises(Damaged, match=f"^{path}.*{message}"):
        texts(path)


def test_nothing_at_a_path_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"^DATASET={tmp_path}/no.txt does not exist"):
        documents(source(tmp_path / "no.txt"))
    with pytest.raises(NotFound, match=r"\*\.jsonl does not exist"):
        documents(source(tmp_path / "*.jsonl"))
    with pytest.raises(NotFound, match=f"^DATASET={tmp_path} holds no file of .txt"):
        documents(source(tmp_path))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n")
    with pytest.raises(ConfigError, match=r"^DATASET=.*/a.csv: files end with .txt, .jsonl"):
        documents(source(tmp_path / "a.csv"))


def test_a_remote_file_is_read_like_a_local_one(
    bucket: str, s3_client: Any, tmp_path: Path
) -> None:
    s3_client.put_object(Bucket=bucket, Key="in/a.jsonl", Body=jsonl(ROWS))
    s3_client.put_object(Bucket=bucket, Key="in/a.csv", Body=b"text")
    assert texts(f"s3://{bucket}/in", data_dir=tmp_path) == ROWS
    with pytest.raises(ConfigError, match=r"^DATASET=s3://.*/a.csv: files end with .txt"):
        texts(f"s3://{bucket}/in/a.csv", data_dir=tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_access_denied(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.touch(0o000)
    with pytest.raises(AccessDenied, match=f"^DATASET: {path} cannot be used"):
        texts(path)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    for dataset in (closed, closed / "a.txt", tmp_path):
        with pytest.raises(
            AccessDenied, match=r"^DATASET: .* cannot be used \(Permission denied\)"
        ):
            documents(source(dataset))


def test_a_file_that_vanishes_is_not_found(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    pieces = documents(source(path))
    path.unlink()
    with pytest.raises(NotFound, match=f"^DATASET: {path} does not exist"):
        list(pieces)


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
    first = next(iter(documents(source("builtin"))))
    assert first == next(iter(documents(source("builtin"))))
    assert next(iter(documents(source("builtin"), skip=1))) != first


def test_the_fingerprint_is_that_of_the_content_and_not_of_the_place(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_rows(tmp_path / folder / "a.jsonl", ROWS)
    one, two = source(tmp_path / "one"), source(tmp_path / "two")
    assert source_fingerprint(one) == source_fingerprint(two)
    assert source_fingerprint(source(tmp_path / "two/a.jsonl")) == source_fingerprint(two)
    seen = {source_fingerprint(one), source_fingerprint(source(tmp_path / "one", text_column="b"))}
    write_rows(tmp_path / "one" / "a.jsonl", [*ROWS[:-1], "x"])
    seen.add(source_fingerprint(one))
    (tmp_path / "two" / "a.jsonl").rename(tmp_path / "two" / "b.jsonl")
    seen.add(source_fingerprint(two))
    assert len(seen) == 4


def test_the_text_column_does_not_count_for_files_that_have_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    plain = source_fingerprint(source(tmp_path))
    assert source_fingerprint(source(tmp_path, text_column="body")) == plain


def test_a_dataset_of_the_hub_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub(monkeypatch, tmp_path, HUB_FILES):
        assert texts("o/good") == [f"row {i}" for i in range(30)]
        assert texts("o/good", skip=27) == ["row 27", "row 28", "row 29"]
        assert source_fingerprint(source("o/good")) == source_fingerprint(
            source(f"o/good@{REVISION}")
        )


def test_a_run_goes_on_with_the_revision_that_it_was_begun_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DataSettings(dataset="o/good", data_dir=tmp_path)
    with hub(monkeypatch, tmp_path, HUB_FILES) as requests:
        begun = pin_source(settings)
        assert (begun.revision, begun.settings.dataset) == (REVISION, f"o/good@{REVISION}")
        asked = len(requests)
        assert pin_source(settings, REVISION) == begun
        assert pin_source(settings, "b" * 40).fingerprint != begun.fingerprint
        assert len(requests) == asked, "a known revision needs no hub"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"text_column": "body"}, "^TEXT_COLUMN=body is not in o/good; it has n, text$"),
        ({"dataset_split": "dev"}, r"DATASET_SPLIT=dev cannot be used: .*\['train'\]"),
        ({"dataset_config": "en"}, "DATASET_CONFIG=en .*cannot be used: .*'en' not found"),
    ],
    ids=str,
)
def test_a_wrong_part_of_a_hub_dataset_is_named(
    more: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub(monkeypatch, tmp_path, HUB_FILES), pytest.raises(ConfigError, match=message):
        texts("o/good", **more)


def test_a_broken_file_of_the_hub_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"train.jsonl": b'{"text": "a"}\n{"text": '}
    with hub(monkeypatch, tmp_path, files), pytest.raises(Damaged, match=r"^DATASET=o/good"):
        texts("o/good")


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("o/missing", NotFound),
        ("o/gated", AccessDenied),
        ("o/forbidden", AccessDenied),
        ("o/busy", Unavailable),
        ("no id at all", NotFound),
    ],
)
def test_the_hubs_refusals_are_told_apart(
    dataset: str, expected: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub(monkeypatch, tmp_path, HUB_FILES):
        with pytest.raises(expected, match=f"^DATASET={dataset}") as caught:
            source_fingerprint(source(dataset))
        assert caught.type is expected
        with pytest.raises(expected, match=f"^DATASET={dataset}"):
            texts(dataset)


def test_a_hub_that_nobody_answers_for_is_unavailable(
    closed_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_endpoint(monkeypatch, closed_endpoint, tmp_path)
    with pytest.raises(Unavailable, match=r"^DATASET=o/good: the hub cannot be reached"):
        source_fingerprint(source("o/good"))
