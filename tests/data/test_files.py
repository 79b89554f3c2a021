"""Files of this machine: which ones, in which order, their digests, and what is refused."""

import gzip
import logging
import os
from pathlib import Path

import pytest

from app.data.sources import pin_source
from app.errors import AccessDenied, ConfigError, Damaged, NotFound
from tests.support.corpus_files import ROWS, jsonl, write_rows
from tests.support.source_pieces import documents, fingerprint_of, source, texts


def test_a_folder_gives_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("c.txt", "b/2.txt", "a.txt", "b/.3.txt", ".hidden/4.txt", "notes.md"):
        (tmp_path / name).write_text(name)
    assert texts(tmp_path) == ["a.txt", "b/2.txt", "c.txt"]
    assert texts(f"{tmp_path}/**/*.txt") == ["a.txt", "b/2.txt", "c.txt"]
    assert texts(f"{tmp_path}/[ab].txt") == ["a.txt"]
    assert texts(f"file://{tmp_path}/a.txt") == ["a.txt"]


def test_nothing_at_a_path_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"^DATASET={tmp_path}/no.txt does not exist"):
        documents(source(tmp_path / "no.txt"))
    with pytest.raises(NotFound, match=r"\*\.jsonl matches nothing"):
        documents(source(tmp_path / "*.jsonl"))
    with pytest.raises(NotFound, match=f"^DATASET={tmp_path} holds no file of .txt"):
        documents(source(tmp_path))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n")
    with pytest.raises(ConfigError, match=r"^DATASET=.*/a.csv: files end with .txt, .jsonl"):
        documents(source(tmp_path / "a.csv"))


def test_endings_in_capitals_and_links_count_like_any_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app")
    for name in ("set/a.txt", "set/B.TXT", "big/c.JSONL.GZ", "set/empty.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / "set" / "a.txt").write_text("a")
    (tmp_path / "set" / "B.TXT").write_text("B")
    (tmp_path / "set" / "empty.txt").touch()
    (tmp_path / "big" / "c.JSONL.GZ").write_bytes(gzip.compress(jsonl(["c"])))
    (tmp_path / "set" / "more").symlink_to(tmp_path / "big")
    assert texts(tmp_path / "set") == ["B", "a", "c"]
    assert f"DATASET={tmp_path}/set: 1 file is empty (empty.txt)" in caplog.messages


def test_names_that_are_no_utf_8_are_read_like_others(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    (tmp_path / name).write_text("coffee")
    (tmp_path / "tea.txt").write_text("tea")
    pinned = pin_source(source(tmp_path))
    assert [piece.text for piece in pinned.pieces()] == ["coffee", "tea"]
    assert len(pinned.parts) == 2


def test_a_home_that_is_not_known_is_a_matter_of_dataset(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no home directory is known for ~nobody-at-all"):
        documents(source("~nobody-at-all/a.txt"))


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
            AccessDenied, match=f"^DATASET: {closed}.* cannot be used .Permission denied"
        ):
            documents(source(dataset))
    closed.rename(tmp_path / "lost+found")
    path.chmod(0o600)
    assert texts(tmp_path) == []


def test_a_file_that_vanishes_is_not_found(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    pieces = documents(source(path))
    path.unlink()
    with pytest.raises(NotFound, match=f"^DATASET: {path} does not exist"):
        list(pieces)


def test_a_file_under_two_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").symlink_to("a.txt")
    with pytest.raises(ConfigError, match=r"a\.txt and .*b\.txt are the same file.* read twice"):
        documents(source(f"{tmp_path}/*.txt"))
    (tmp_path / "b.txt").unlink()
    (tmp_path / "b.txt").hardlink_to(tmp_path / "a.txt")
    with pytest.raises(ConfigError, match="are the same file"):
        documents(source(tmp_path))


def test_no_piece_of_a_file_that_was_overwritten_in_place_is_given(tmp_path: Path) -> None:
    """Its tokens would be shared under the digest of the content that was listed."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(["old"] * 1000))
    pieces = documents(source(path))
    assert next(pieces).text == "old"
    path.write_bytes(jsonl(["new"] * 1000))
    with pytest.raises(Damaged, match=r"a\.jsonl was changed while it was read"):
        next(pieces)


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


def test_a_file_uri_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "x.txt").write_text("one")
    assert texts(f"file://{tmp_path}/a%20b/*.txt") == ["one"]
