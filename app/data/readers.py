"""One file as pieces, from any place in it on: .txt, .jsonl (plain, .gz, .zst) and .parquet.

A place is a byte offset in the (decompressed) text, or a row of a parquet file. A plain file
is opened there; a compressed one is decompressed up to it, without looking at the rows.
"""

import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from app.data.pieces import (
    DOCUMENT_BYTES,
    MAX_ROW_BYTES,
    PIECE_SIZE,
    Piece,
    Placed,
    Position,
    piece_end,
    row_pieces,
)
from app.errors import ConfigError, Damaged
from app.failures import first_line, from_os_error

FORMATS = (".txt", ".jsonl", ".parquet")
SUFFIXES = (*FORMATS, ".txt.gz", ".txt.zst", ".jsonl.gz", ".jsonl.zst")

_BLOCK = 1 << 20  # bytes that are read at once
_BATCH_ROWS = 64  # rows of a parquet file that are decoded at once
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def file_pieces(path: Path, name: str, column: str, after: Position) -> Iterator[Placed]:
    """The pieces of the file after the position `after` in it; `name` is for messages.

    Raises Damaged, NotFound, AccessDenied, Unavailable, or ConfigError (no such column, a row
    that is too long).
    """
    with reading(name):
        if name.endswith(".parquet"):
            yield from _parquet_pieces(path, name, column, after)
            return
        with _open_binary(path, name) as file:
            if name.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")):
                yield from _jsonl_pieces(file, name, column, after)
            else:
                yield from _txt_pieces(file, after)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """What can be wrong with the file `name`, as one of our errors that names it."""
    from pyarrow import ArrowException

    try:
        yield
    except UnicodeDecodeError as error:
        raise Damaged(f"{name} is not UTF-8 text ({error.reason}): convert it") from error
    except (ArrowException, EOFError) as error:
        raise Damaged(f"{name} cannot be read: {first_line(error)}: replace it") from error
    except OSError as error:
        if error.errno is None:  # from a decoder, not from the system
            raise Damaged(f"{name} cannot be read: {first_line(error)}: replace it") from error
        raise from_os_error(error, f"DATASET: {name}") from error


def text_of(value: object, column: str, where: str) -> str:
    """The text of a row's value; empty for null. Raises ConfigError for what is no text."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfigError(f"TEXT_COLUMN={column} of {where} holds {type(value).__name__}, not text")
    return value


def no_column(column: str, columns: Iterable[str], where: str) -> ConfigError:
    names = ", ".join(sorted(columns)) or "none"
    return ConfigError(f"TEXT_COLUMN={column} is not in {where}; it has {names}")


def _open_binary(path: Path, name: str) -> BinaryIO:
    if not name.endswith((".gz", ".zst")):
        return path.open("rb", buffering=_BLOCK)
    from pyarrow import input_stream

    compression = "gzip" if name.endswith(".gz") else "zstd"
    stream = input_stream(str(path), compression=compression, buffer_size=_BLOCK)
    return cast("BinaryIO", io.BufferedReader(stream, _BLOCK))


def _go_to(file: BinaryIO, offset: int) -> None:
    """Raises Damaged where the file ends before `offset`: it is not the one that was read."""
    if file.seekable():
        file.seek(offset)
        return
    while offset:
        skipped = len(file.read(min(offset, _BLOCK)))
        if not skipped:
            raise EOFError("it is shorter than it was")
        offset -= skipped


def _txt_pieces(file: BinaryIO, after: Position) -> Iterator[Placed]:
    """One piece of up to DOCUMENT_BYTES; of a longer file, pieces that end where a line does."""
    offset = int(after.get("offset", 0))  # of buffer[0]
    first = offset == 0
    _go_to(file, offset)
    buffer, start, at_end = b"", 0, False
    if first:
        buffer = file.read(DOCUMENT_BYTES + 1)
        start = len(_BYTE_ORDER_MARK) if buffer.startswith(_BYTE_ORDER_MARK) else 0
        if len(buffer) <= DOCUMENT_BYTES:
            if start < len(buffer):
                yield Piece(buffer[start:].decode()), {"offset": len(buffer)}
            return
    while True:
        # One byte more than a piece can have: whether it is the last one is known.
        if not at_end and len(buffer) - start <= 2 * PIECE_SIZE:
            more = file.read(_BLOCK)
            at_end = not more
            buffer, offset, start = buffer[start:] + more, offset + start, 0
            continue
        if start >= len(buffer):
            return
        end = piece_end(buffer, b"\n", start)
        if end < len(buffer):
            end = _character_border(buffer, end)
        text = buffer[start:end].decode()
        yield Piece(text, first, at_end and end == len(buffer)), {"offset": offset + end}
        first, start = False, end


def _character_border(buffer: bytes, end: int) -> int:
    """The nearest place up to `end` that is not inside a character (of at most 4 bytes)."""
    for border in range(end, end - 4, -1):
        if buffer[border] & 0xC0 != 0x80:
            return border
    return end  # no UTF-8: decoding says so


def _jsonl_pieces(file: BinaryIO, name: str, column: str, after: Position) -> Iterator[Placed]:
    offset, number = int(after.get("offset", 0)), int(after.get("line", 0))
    given = int(after.get("part", 0))
    _go_to(file, offset)
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        where = f"{name}, line {number}"
        if len(line) > MAX_ROW_BYTES:
            raise _too_long(where)
        text = line.decode("utf-8-sig") if offset == 0 else line.decode()
        begin, offset = offset, offset + len(line)
        if line.isspace():
            continue
        value = _json_value(text, column, where)
        if b"\\u" in line:
            value = _without_lone_surrogates(value)
        for piece, part in row_pieces(value, given):
            if part is None:
                yield piece, {"offset": offset, "line": number}
            else:
                yield piece, {"offset": begin, "line": number - 1, "part": part + 1}
        given = 0


def _json_value(line: str, column: str, where: str) -> str:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{where} is not JSON ({error}): correct or remove the line") from error
    if not isinstance(row, dict):
        raise Damaged(f"{where} is not a JSON object: correct or remove the line")
    if column not in row:
        raise no_column(column, row, where)
    return text_of(row[column], column, where)


def _without_lone_surrogates(text: str) -> str:
    """JSON can spell half a surrogate pair, which is no character: U+FFFD stands for it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _parquet_pieces(path: Path, name: str, column: str, after: Position) -> Iterator[Placed]:
    from pyarrow.parquet import ParquetFile

    row, given = int(after.get("row", 0)), int(after.get("part", 0))
    # buffer_size: a column is read page by page, not whole; groups can be of many gigabytes.
    with ParquetFile(path, buffer_size=_BLOCK, pre_buffer=False) as file:
        if column not in file.schema_arrow.names:
            raise no_column(column, file.schema_arrow.names, name)
        first = 0  # row of the group
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < first + rows:
                for value in _group_values(file, group, column, row - first):
                    if isinstance(value, _TooLong):
                        raise _too_long(f"{name}, row {row + 1}")
                    for piece, part in row_pieces(text_of(value, column, name), given):
                        place = {"row": row + 1} if part is None else {"row": row, "part": part + 1}
                        yield piece, place
                    row, given = row + 1, 0
            first += rows


class _TooLong:
    """Stands for a value above the limit."""


def _group_values(file: Any, group: int, column: str, skip: int) -> Iterator[object]:
    """The values of one row group without the first `skip`. Few rows are decoded at a time."""
    mean = _mean_bytes(file.metadata.row_group(group), column)
    if mean > MAX_ROW_BYTES:
        yield _TooLong()
    batches = file.iter_batches(
        batch_size=max(1, min(_BATCH_ROWS, 4 * _BLOCK // max(1, mean))),
        row_groups=[group],
        columns=[column],
        use_threads=False,
    )
    for batch in batches:
        if skip >= len(batch):
            skip -= len(batch)
            continue
        values = batch.column(0)[skip:]
        if batch.nbytes > MAX_ROW_BYTES:
            yield from (_TooLong() if _bytes_of(v) > MAX_ROW_BYTES else v.as_py() for v in values)
        else:
            yield from values.to_pylist()
        skip = 0


def _bytes_of(value: Any) -> int:
    """Size of an Arrow value that is text or binary."""
    buffer = value.as_buffer() if hasattr(value, "as_buffer") else None
    return 0 if buffer is None else int(buffer.size)


def _mean_bytes(group: Any, column: str) -> int:
    """Of a row's text, by the file's own statistics."""
    chunks = [group.column(index) for index in range(group.num_columns)]
    sizes = [
        chunk.total_uncompressed_size
        for chunk in chunks
        if chunk.path_in_schema.split(".")[0] == column
    ]
    return int(sum(sizes)) // max(1, int(group.num_rows))


def _too_long(where: str) -> ConfigError:
    return ConfigError(
        f"{where} is longer than {MAX_ROW_BYTES >> 20} MiB: cut it into several rows, or give the "
        "text as a .txt file"
    )
