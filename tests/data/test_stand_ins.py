"""What stands in the place of a file is refused by name, before the first step where it can be."""

import logging
from pathlib import Path

import pytest

from app.data.sources import pin_source
from app.errors import AppError, ConfigError, Damaged
from tests.support.source_pieces import source, texts

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = b"\xef\xbb\xbf\n  <!doctype html>\n<html><body>404</body></html>"


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.txt", LFS, ConfigError, "is a pointer to the file.* git lfs pull"),
        ("a.jsonl.gz", LFS, ConfigError, "git lfs pull"),
        ("a.parquet", LFS, ConfigError, "git lfs pull"),
        ("a.parquet", b"/annex/objects/SHA256E-s9--0", ConfigError, "git annex get"),
        ("a.jsonl", PAGE, Damaged, r"is a web page \(HTML\)"),
        ("a.txt.zst", PAGE, Damaged, r"is a web page \(HTML\)"),
        ("a.parquet", b"<?xml version='1.0'?>\n<html>", Damaged, r"is a web page \(HTML\)"),
        ("a.txt", "text".encode("utf-16"), Damaged, "is UTF-16 text: convert"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16-le"), Damaged, "begins with many zero bytes"),
        ("a.txt", bytes(5000), Damaged, "begins with many zero bytes"),
        ("a.txt", b"PK\x03\x04...", Damaged, "is a zip archive: unpack it"),
        ("a.jsonl", b"BZh91AY&SY...", Damaged, "is a bzip2 file"),
        ("a.txt", b"%PDF-1.7", Damaged, "is a PDF: extract its text"),
    ],
)
def test_a_file_that_is_something_else_is_refused_before_it_is_read(
    tmp_path: Path, name: str, content: bytes, error: type[AppError], message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=f"^{tmp_path}/{name} .*{message}"):
        pin_source(source(tmp_path))


def test_text_of_pages_is_read_and_some_lines_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "app")
    for number in range(5):
        (tmp_path / f"{number}.txt").write_bytes(PAGE)
    assert len(texts(tmp_path)) == 5
    lines = [message for message in caplog.messages if "HTML" in message]
    assert len(lines) == 3
    assert lines[0] == f"DATASET: {tmp_path}/0.txt is a web page (HTML), and is read as text"
    assert lines[2] == lines[0].replace("0.txt", "2.txt") + "; further ones are not named"


def test_text_that_only_mentions_such_signs_is_text(tmp_path: Path) -> None:
    content = "The html tag. <p>version https://git-lfs.github.com/spec/ PK <html>"
    (tmp_path / "a.txt").write_text(content)
    (tmp_path / "b.txt").write_text("nul \0 inside, as in a log that was cut off by a crash")
    assert len(texts(tmp_path)) == 2
