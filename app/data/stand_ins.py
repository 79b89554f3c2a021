"""What is found in the place of a file: a pointer, a web page, an archive, another encoding.

Told by the first bytes. None of these can begin a file that is what its ending says, but for a
web page in a .txt file, which may be the text that is meant.
"""

import re
from typing import Literal

from app.data.kinds import FileKind
from app.errors import ConfigError, Damaged

HEAD = 512  # bytes that are looked at

_POINTERS = {
    b"version https://git-lfs.github.com/spec/": "git lfs pull",
    b"version https://hawser.github.com/spec/": "git lfs pull",
    b"/annex/objects/": "git annex get",
}
_PAGE = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<(!doctype\s+html|html|head|body)\b", re.I
)
_COMPRESSED: dict[bytes, Literal["gzip", "zstd"]] = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_OTHERS = {
    b"BZh91AY&SY": "a bzip2 file: give it as .gz, .zst or decompressed",
    b"\xfd7zXZ\x00": "an xz file: give it as .gz, .zst or decompressed",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"%PDF-": "a PDF: extract its text",
    b"PAR1\x15": "a parquet file: give it that ending",
    b"\xff\xfe": "UTF-16 text: convert it to UTF-8",
    b"\xfe\xff": "UTF-16 text: convert it to UTF-8",
}


def is_page(head: bytes) -> bool:
    """Whether a file that begins with `head` is a web page."""
    return _PAGE.match(head) is not None


def compression_of(head: bytes, kind: FileKind) -> Literal["gzip", "zstd"] | None:
    """How a file of text or rows is compressed, whatever its name says.

    No UTF-8 text begins with the signs of gzip or zstd, and a server may compress what it sends.
    """
    return next((c for sign, c in _COMPRESSED.items() if head.startswith(sign)), kind.compression)


def refuse_stand_in(head: bytes, name: str, kind: FileKind) -> None:
    """Raises ConfigError or Damaged if `head`, the first bytes of the file `name`, are those of
    something else. A .txt file may be a web page."""
    for sign, command in _POINTERS.items():
        if head.startswith(sign):
            raise ConfigError(f"{name} is a pointer to the file, and not the file: {command}")
    if is_page(head) and kind != FileKind("text"):
        raise Damaged(
            f"{name} is a web page (HTML), and not what its ending says: fetch the file itself"
        )
    if kind.content == "table" or kind.compression:
        return  # whoever reads these knows their own signs
    for sign, what in _OTHERS.items():
        if head.startswith(sign):
            raise Damaged(f"{name} is {what}")
    if head.count(0) * 4 > len(head):
        raise Damaged(
            f"{name} is not UTF-8 text (it begins with many zero bytes): convert or replace it"
        )
