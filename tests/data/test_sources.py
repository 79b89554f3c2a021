import gzip
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.data.sources import Piece, is_hub_id, pin_source
from app.data.tokenization_limits import TokenizationLimits
from app.data.tokenizer import read_tokenizer
from app.errors import AccessDenied, ConfigError, Damaged, NotFound
from app.settings.variables import DataSettings
from tests.support.prepared import documents, prepare
from tests.support.read_corpus import peak_memory

ROWS = ["first text", "", "second\ntext", "drítter – text 日本"]


def source(dataset: object, **more: Any) -> DataSettings:
    return DataSettings(dataset=str(dataset), **more)


def fingerprint_of(settings: DataSettings) -> str:
    return pin_source(settings).fingerprint


def texts(dataset: object, **more: Any) -> list[str]:
    return [piece.text for piece in documents(source(dataset, **more))]


def check_every_position(settings: DataSettings) -> list[Piece]:
    """All pieces; going on after any of them, by way of JSON, gives those that follow."""
    pieces = list(documents(settings))
    going = documents(settings)
    for number in range(len(pieces) + 1):
        position = json.loads(json.dumps(going.position))
        rest = documents(settings, position)
        assert rest.position == position
        assert list(rest) == pieces[number:]
        assert next(going, None) == (pieces[number] if number < len(pieces) else None)
    return pieces


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
    assert check_every_position(source(path)) == [Piece(row) for row in ROWS]


def test_a_parquet_file_is_gone_on_with_in_any_row_group(tmp_path: Path) -> None:
    rows = [f"row {number}" for number in range(30)]
    pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet", row_group_size=7)
    pq.write_table(pa.table({"text": rows[:0]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": rows[:3]}), tmp_path / "c.parquet")
    pieces = check_every_position(source(tmp_path))
    assert [piece.text for piece in pieces] == [*rows, *rows[:3]]


def test_going_on_opens_a_file_at_the_place_and_reads_nothing_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jsonl").write_bytes(jsonl([f"{number} {i}" for i in range(9)]))
    pieces = documents(source(tmp_path))
    for _ in range(22):
        next(pieces)
    position = pieces.position
    (tmp_path / "0.jsonl").write_bytes(b"not JSON")
    broken = (tmp_path / "2.jsonl").read_bytes().replace(b'{"id": 1, "text": "2 1"}', b"x" * 24)
    (tmp_path / "2.jsonl").write_bytes(broken)
    assert [piece.text for piece in documents(source(tmp_path), position)] == [
        f"2 {i}" for i in range(4, 9)
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_row_above_the_limit_is_refused_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("app.data.readers.MAX_ROW_BYTES", 1 << 20)
    path = write_rows(tmp_path / name, ["ok", "x" * (3 << 20), "ok", "ok", "ok"])
    kind = "row 2" if name.endswith(".parquet") else "line 2"
    with pytest.raises(ConfigError, match=f"^{path}, {kind} is longer than 1 MiB: cut it"):
        texts(path)


def test_a_line_that_decompresses_to_gigabytes_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    with pa.output_stream(str(path), compression="zstd") as stream:
        stream.write(b'{"text": "')
        for _ in range(1024):
            stream.write(b"x" * (1 << 20))
    assert path.stat().st_size < 1 << 20
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = peak_memory()
    with pytest.raises(ConfigError, match="line 1 is longer than 64 MiB"):
        texts(path)
    assert peak_memory() - before < 400, "MB"


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


def parquet_of_bad_utf8(path: Path) -> None:
    column = pa.array([b"good", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"text": column}), path)


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
        ("a.jsonl", lambda path: path.write_bytes(b'{"text": "\xff"}'), "is not UTF-8 text"),
        ("a.parquet", parquet_of_bad_utf8, "is not UTF-8 text"),
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
    with pytest.raises(Damaged, match=f"^{path}.*{message}") as caught:
        texts(path)
    assert not re.search(r"[.,:;] ?[.,:;)]", str(caught.value).removeprefix(str(path)))


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
    pieces = documents(source("builtin"))
    first, position, second = next(pieces), pieces.position, next(pieces)
    assert first != second
    assert next(documents(source("builtin"))) == first
    assert next(documents(source("builtin"), position)) == second


def test_a_file_under_two_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").symlink_to("a.txt")
    with pytest.raises(ConfigError, match=r"a\.txt and .*b\.txt are the same file.* read twice"):
        documents(source(f"{tmp_path}/*.txt"))
    (tmp_path / "b.txt").unlink()
    (tmp_path / "b.txt").hardlink_to(tmp_path / "a.txt")
    with pytest.raises(ConfigError, match="are the same file"):
        documents(source(tmp_path))


def test_a_file_that_is_changed_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(["one", "two"]))
    pieces = documents(source(tmp_path))
    next(pieces)
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(jsonl(["three"]))
    with pytest.raises(Damaged, match=r"a\.jsonl was changed while it was read"):
        list(pieces)


def test_a_file_that_is_replaced_between_listing_and_reading_is_an_error(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_rows(tmp_path / f"{name}.jsonl", ROWS)
    pieces = pin_source(source(tmp_path)).pieces()
    write_rows(tmp_path / "b.jsonl", ROWS[1:])
    assert [next(pieces).text for _ in ROWS] == ROWS
    with pytest.raises(Damaged, match=r"b\.jsonl was changed after it was listed"):
        next(pieces)


def test_the_fingerprint_of_a_large_file_is_that_of_its_size_and_of_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    content = bytearray(b"x" * (64 * 2**20 + 1))

    def fingerprint() -> str:
        path.write_bytes(content)
        os.utime(path, (1, 1))
        return fingerprint_of(source(path))

    seen = {fingerprint()}
    os.utime(path)
    assert fingerprint_of(source(path)) in seen, "the time does not count"
    for place in (0, len(content) - 1, 65_535):
        content[place] = ord("y")
        seen.add(fingerprint())
    content[70_000] = ord("y")
    assert fingerprint() in seen, "between the blocks nothing is seen"
    content += b"x"
    seen.add(fingerprint())
    assert len(seen) == 5


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


def test_the_fingerprint_is_that_of_the_content_and_not_of_the_place(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_rows(tmp_path / folder / "a.jsonl", ROWS)
    one, two = source(tmp_path / "one"), source(tmp_path / "two")
    assert fingerprint_of(one) == fingerprint_of(two)
    assert fingerprint_of(source(tmp_path / "two/a.jsonl")) == fingerprint_of(two)
    seen = {fingerprint_of(one), fingerprint_of(source(tmp_path / "one", text_column="b"))}
    write_rows(tmp_path / "one" / "a.jsonl", [*ROWS[:-1], "x"])
    seen.add(fingerprint_of(one))
    (tmp_path / "two" / "a.jsonl").rename(tmp_path / "two" / "b.jsonl")
    seen.add(fingerprint_of(two))
    assert len(seen) == 4


def test_the_text_column_does_not_count_for_files_that_have_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    plain = fingerprint_of(source(tmp_path))
    assert fingerprint_of(source(tmp_path, text_column="body")) == plain


def test_a_document_longer_than_a_shard_is_gone_on_with_in_its_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_tokenizer: Path
) -> None:
    monkeypatch.setattr("app.data.pieces.LONG_ROW", 1000)
    monkeypatch.setattr("app.data.pieces.PIECE_SIZE", 200)
    limits = TokenizationLimits(batch_characters=500)
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
