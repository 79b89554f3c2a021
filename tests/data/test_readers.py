"""Files as pieces: what is one piece, where a long text is cut, going on, and what is damaged."""

import gzip
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.data.limits import DEFAULT_LIMITS, DataLimits
from app.data.pieces import Piece, held_out
from app.errors import ConfigError, Damaged
from tests.support.corpus_files import ROWS, jsonl, write_rows, write_zst
from tests.support.read_corpus import peak_memory
from tests.support.source_pieces import check_every_position, documents, source, texts

DOCUMENT_BYTES, PIECE_SIZE = DEFAULT_LIMITS.document_bytes, DEFAULT_LIMITS.piece_size


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
def test_a_row_above_the_limit_is_refused_by_its_number(tmp_path: Path, name: str) -> None:
    path = write_rows(tmp_path / name, ["ok", "x" * (3 << 20), "ok", "ok", "ok"])
    kind = "row 2" if name.endswith(".parquet") else "line 2"
    with pytest.raises(ConfigError, match=f"^{path}, {kind} is longer than 1 MiB: cut it"):
        texts(path, DataLimits(max_row_bytes=1 << 20))


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


@given(st.text(st.sampled_from("ab\n\r é日"), max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_pieces_of_a_text_file_are_its_content(tmp_path: Path, text: str) -> None:
    limits = DataLimits(piece_size=5, read_bytes=7, document_bytes=12)
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    pieces = check_every_position(source(path), limits)
    assert "".join(piece.text for piece in pieces) == text
    if len(text.encode()) <= 12:
        assert pieces == [Piece(text)] * bool(text)
        return
    assert all(0 < len(piece.text.encode()) <= 10 for piece in pieces)
    assert [piece.starts_document for piece in pieces] == [True, *[False] * len(pieces)][:-1]
    assert [piece.ends_document for piece in pieces] == [*[False] * len(pieces), True][1:]


def test_a_long_text_file_is_cut_at_line_ends(tmp_path: Path) -> None:
    line = "x" * 99 + "\n"
    path = tmp_path / "a.txt"
    path.write_text(line * 1000)
    pieces = texts(path)
    assert len(pieces) > 20
    assert all(len(piece) % 100 == 0 and piece.endswith("\n") for piece in pieces)
    assert all(PIECE_SIZE <= len(piece) < PIECE_SIZE + 100 for piece in pieces[:-1])
    check_every_position(source(path))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_row_of_many_characters_is_cut_like_a_text_file(tmp_path: Path, name: str) -> None:
    limits = DataLimits(piece_size=5, long_row=20)
    rows = ["short", "line\n" * 7, "日" * 33, "", "last"]
    pieces = check_every_position(source(write_rows(tmp_path / name, rows)), limits)
    documents_of_pieces = "".join(p.text + "|" * p.ends_document for p in pieces).split("|")[:-1]
    assert documents_of_pieces == rows
    assert [p.text for p in pieces if p.starts_document] == [
        "short",
        "line\n",
        "日" * 10,
        "",
        "last",
    ]
    assert max(len(piece.text) for piece in pieces) == 10


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_text_file_of_64_kib_is_one_piece_and_a_longer_one_is_not(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    for size in (DOCUMENT_BYTES, DOCUMENT_BYTES + 1):
        text = "é" * (size // 2) + "x" * (size % 2)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        pieces = check_every_position(source(path))
        assert "".join(piece.text for piece in pieces) == text
        assert (len(pieces) == 1) is (size == DOCUMENT_BYTES)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.parquet"])
def test_a_long_row_is_held_out_or_not_as_a_whole_whatever_its_parts_are(
    tmp_path: Path, name: str
) -> None:
    limits = DataLimits(piece_size=20, long_row=50, hashed_characters=7)
    rows = [f"{number}: " + "日 line of words\n" * 10 for number in range(300)]
    pieces = list(documents(source(write_rows(tmp_path / name, rows)), limits=limits))
    decided = [piece.held_out for piece in pieces if piece.starts_document]
    assert decided == [held_out(row) for row in rows]
    assert 0 < sum(map(bool, decided)) < 20
    parts = "".join("|" * p.starts_document + str(int(bool(p.held_out))) for p in pieces)
    assert all(len(set(part)) == 1 < len(part) for part in parts.split("|")[1:])
    own = [held_out(piece.text) for piece in pieces]
    assert own != [piece.held_out for piece in pieces]
    first = decided.index(True)
    path = write_rows(tmp_path / f"short-{name}", rows[first : first + 2])
    assert check_every_position(source(path), limits)[1].held_out


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_text_is_gone_on_with_at_any_piece(tmp_path: Path, suffix: str) -> None:
    text = ("x" * 99 + "\n") * 700
    path = tmp_path / f"a.txt{suffix}"
    if suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        write_zst(path, text.encode())
    assert "".join(piece.text for piece in check_every_position(source(path))) == text


def test_a_compressed_text_file_is_a_document_and_a_byte_order_mark_is_not_text(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfhello"))
    assert list(documents(source(tmp_path / "a.txt.gz"))) == [Piece("hello")]
