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
from tests.support import needs
from tests.support.corpus_files import ROWS, jsonl, write_rows, write_zst, zst
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


@needs.proc
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


MARKED = b"".join(b"Story %d.\nIt ends.\n<|endoftext|>\n" % number for number in range(40))


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_lines_of_end_of_text_separate_the_documents_of_a_text_file(
    tmp_path: Path, line_end: bytes
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(MARKED.replace(b"\n", line_end))
    ends = line_end.decode()
    stories = [f"Story {number}.{ends}It ends.{ends}" for number in range(40)]
    assert check_every_position(source(path)) == [Piece(story) for story in stories]
    path.write_bytes(
        b"<|endoftext|>\n <|endoftext|> \nfirst<|endoftext|>\n<|endoftext|>x\n<|endoftext|>"
    )
    assert check_every_position(source(path)) == [Piece("first<|endoftext|>\n<|endoftext|>x\n")]


@given(st.lists(st.sampled_from(["a", "é日", "\n", "<|endoftext|>", " "]), max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_document_between_marks_is_whole_or_cut_as_a_file_of_its_own(
    tmp_path: Path, parts: list[str]
) -> None:
    limits = DataLimits(piece_size=5, read_bytes=7, document_bytes=24)
    path = tmp_path / "a.txt"
    path.write_text("".join(parts))
    pieces = check_every_position(source(path), limits)
    joined = "".join(piece.text + "|" * piece.ends_document for piece in pieces)
    lines = re.split(r"^ {0,16}<\|endoftext\|> {0,16}(?:\n|\Z)", "".join(parts), flags=re.M)
    assert joined == "".join(f"{text}|" for text in lines if text)


def test_marks_of_byte_order_are_no_text_where_files_were_joined(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    (tmp_path / "a.jsonl").write_bytes(mark + jsonl(ROWS) + mark + jsonl(ROWS))
    (tmp_path / "b.jsonl").write_bytes(mark)
    (tmp_path / "c.txt").write_bytes(mark + b"one\n" + mark + b"two \xef\xbb\xbf")
    (tmp_path / "d.txt").write_bytes(mark)
    pieces = check_every_position(source(tmp_path))
    assert [piece.text for piece in pieces] == [*ROWS, *ROWS, "one\ntwo \ufeff"]


def several_gzip(data: bytes) -> bytes:
    half = len(data) // 2
    return b"".join(gzip.compress(part) for part in (data[:half], b"", data[half:], b""))


def several_zst(data: bytes) -> bytes:
    half = len(data) // 2
    skipped = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"
    return zst(data[:half]) + skipped + zst(b"") + zst(data[half:]) + zst(b"")


@pytest.mark.parametrize(
    ("name", "compressed"), [("a.jsonl.gz", several_gzip), ("a.jsonl.zst", several_zst)]
)
def test_a_compressed_file_of_several_parts_is_read_to_its_end(
    tmp_path: Path, name: str, compressed: Any
) -> None:
    rows = [os.urandom(500).hex() for _ in range(20)]
    path = tmp_path / name
    whole = compressed(jsonl(rows))
    path.write_bytes(whole)
    assert texts(path) == rows
    for cut in (1, 30, len(whole) // 3):
        path.write_bytes(whole[: -cut - len(compressed(b"")) // 4])
        with pytest.raises(Damaged, match=f"^{path} cannot be read"):
            texts(path)


def test_a_long_window_is_refused_with_the_command_that_undoes_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    rows = jsonl(ROWS)
    last_block = (1 | len(rows) << 3).to_bytes(3, "little")
    path.write_bytes(b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3]) + last_block + rows)
    with pytest.raises(ConfigError, match=r"long window .*memory.*: decompress it with zstd -d"):
        texts(path)


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_text_of_any_type_of_parquet_is_read_and_a_null_is_an_empty_text(
    tmp_path: Path, kind: Any
) -> None:
    rows = ["one", None, "two"]
    pq.write_table(
        pa.table({"text": pa.array(rows, pa.string()).cast(kind)}), tmp_path / "a.parquet"
    )
    assert texts(tmp_path) == ["one", "", "two"]


@pytest.mark.parametrize("values", [[b"a"], [["a"]], [1], [{"text": "a"}]], ids=str)
def test_a_column_that_holds_no_text_is_refused_with_the_file(tmp_path: Path, values: Any) -> None:
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    with pytest.raises(
        ConfigError, match=r"^TEXT_COLUMN=text of .*/a\.parquet holds \w+, not text$"
    ):
        texts(tmp_path)


def test_what_is_compressed_under_a_plain_name_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(jsonl(ROWS)))
    (tmp_path / "b.txt").write_bytes(zst(b"some text"))
    assert texts(tmp_path) == [*ROWS, "some text"]


def test_a_compressed_text_file_is_a_document_and_a_byte_order_mark_is_not_text(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfhello"))
    assert list(documents(source(tmp_path / "a.txt.gz"))) == [Piece("hello")]
