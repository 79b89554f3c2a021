"""What the name of a file says of its content: text, rows or a table, and how it is compressed."""

from dataclasses import dataclass
from typing import Literal

ENDINGS = ".txt, .jsonl, .ndjson or .json (each also with .gz or .zst), or .parquet"

_CONTENTS: dict[str, Literal["text", "rows", "table"]] = {
    ".txt": "text",
    ".jsonl": "rows",
    ".ndjson": "rows",
    ".json": "rows",
    ".parquet": "table",
}
_COMPRESSIONS: dict[str, Literal["gzip", "zstd"]] = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True, slots=True)
class FileKind:
    """`text` is one document or several, `rows` one in each line as JSON, `table` is parquet."""

    content: Literal["text", "rows", "table"]
    compression: Literal["gzip", "zstd"] | None = None


def kind_of(name: str) -> FileKind | None:
    """The kind of the file `name`, in capitals or not; None for an ending that is not ours."""
    stem, ending = _split(name.lower())
    compression = _COMPRESSIONS.get(ending)
    if compression:
        ending = _split(stem)[1]
    content = _CONTENTS.get(ending)
    if content is None or (content == "table" and compression):
        return None
    return FileKind(content, compression)


def is_plain_json(name: str) -> bool:
    """Whether `name` ends with .json: beside data this mostly describes them, and is no text."""
    return name.lower().endswith(".json")


def _split(name: str) -> tuple[str, str]:
    stem, dot, ending = name.rpartition(".")
    return stem, dot + ending
