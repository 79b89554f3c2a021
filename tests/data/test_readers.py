"""Files as pieces: what is one piece, where a long text is cut, going on inside it."""

import gzip
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.data.limits import DATA_LIMITS, DataLimits
from app.data.pieces import Piece, held_out
from tests.support.corpus_files import write_rows, write_zst
from tests.support.source_pieces import check_every_position, documents, source, texts

DOCUMENT_BYTES, PIECE_SIZE = DATA_LIMITS.document_bytes, DATA_LIMITS.piece_size


@given(st.text(st.sampled_from("ab\n\r é日"), max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
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
