"""One file as pieces, from any position in it: text and rows (plain, gzip, zstd), and tables.

A position is a byte offset in the (decompressed) text, or a row of a parquet file. Reading goes
on there at once in a plain file; a compressed one is decompressed up to it, and no row before
it is parsed.
"""

import io
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, AnyStr, BinaryIO, cast

from app.data.kinds import FileKind
from app.data.limits import DataLimits
from app.data.pieces import Piece, Placed, Position, held_out
from app.data.stand_ins import HEAD, refuse_stand_in
from app.errors import ConfigError, Damaged
from app.failures import first_line, from_os_error

_ROW_ADVICE = "each line has to be one object (jq -c '.[]' makes such lines of an array)"
_BATCH_ROWS = 64  # rows of a parquet file that are decoded at once
_BYTE_ORDER_MARK = "\ufeff"
_JOINED = re.compile(f"^{_BYTE_ORDER_MARK}", re.M)
# A line that ends a document, as in the .txt files of TinyStories and of GPT-2's tools.
_END_OF_TEXT = re.compile(rb"[ \t]{0,16}<\|endoftext\|>[ \t]{0,16}(?:\r?\n|\r?\Z)")
_LATER_END_OF_TEXT = re.compile(rb"(?<=\n)" + _END_OF_TEXT.pattern)
_MARK_BYTES = 64  # more than such a line has


def checked_head(path: Path, name: str, kind: FileKind) -> bytes:
    """The first bytes of a file. Raises ConfigError or Damaged where they are those of a pointer,
    a web page or another kind of file, and what `file_failures` raises."""
    with file_failures(name), path.open("rb") as file:
        head = file.read(HEAD)
    refuse_stand_in(head, name, kind)
    return head


def file_pieces(
    path: Path, name: str, kind: FileKind, column: str, after: Position, limits: DataLimits
) -> Iterator[Placed]:
    """The pieces of the file after the position `after` in it; messages call the file `name`.

    Raises Damaged, NotFound, AccessDenied, Unavailable, or ConfigError (no such column, a row
    that is too long).
    """
    with file_failures(name):
        if kind.content == "table":
            yield from _parquet_pieces(path, name, column, after, limits)
            return
        with _open_binary(path, kind, limits.read_bytes) as file:
            if kind.content == "rows":
                yield from _jsonl_pieces(file, name, column, after, limits)
            else:
                yield from _txt_pieces(file, after, limits)


@contextmanager
def file_failures(name: str) -> Iterator[None]:
    """For reading the file `name`: what can be wrong with it becomes one of our errors.

    Raises Damaged, NotFound, AccessDenied, Unavailable or ConfigError; each names the file.
    """
    from pyarrow import ArrowException

    try:
        yield
    except UnicodeDecodeError as error:
        raise Damaged(f"{name} is not UTF-8 text ({error.reason}): convert it") from error
    except (ArrowException, EOFError) as error:
        raise _undecodable(name, error) from error
    except OSError as error:
        if error.errno is None:  # a decoder raised it, and not the system
            raise _undecodable(name, error) from error
        raise from_os_error(error, f"DATASET: {name}") from error


def _undecodable(name: str, error: Exception) -> ConfigError:
    if "too much memory" in str(error):  # zstd's words for a window above 128 MiB
        return ConfigError(
            f"{name} was compressed with a long window (zstd --long), which takes more memory than "
            "is given to it here: decompress it with zstd -d --long=31, and name what that gives"
        )
    return Damaged(f"{name} cannot be read: {first_line(error)}: replace it")


def text_of(value: object, column: str, where: str) -> str:
    """The text of a row's value; null gives an empty text. Raises ConfigError for another type."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfigError(f"TEXT_COLUMN={column} of {where} holds {type(value).__name__}, not text")
    return value


def no_column(column: str, columns: Iterable[str], where: str) -> ConfigError:
    """The error to raise where TEXT_COLUMN names none of `columns`."""
    names = ", ".join(sorted(columns)) or "none"
    return ConfigError(f"TEXT_COLUMN={column} is not in {where}; it has {names}")


def row_pieces(
    text: str, limits: DataLimits, first: int, here: Position, following: Position
) -> Iterator[Placed]:
    """The pieces of the row at the position `here`, from number `first` on. The row after it is at
    the position `following`.

    A row of up to `long_row` characters is one piece. A longer one is cut at line ends: a
    tokenizer given one string of many megabytes takes gigabytes of memory and a single core.
    """
    if len(text) <= limits.long_row:
        if not first:
            yield Piece(text), following
        return
    held, start, number = held_out(text, limits.hashed_characters), 0, 0
    while start < len(text):
        end = _piece_end(text, "\n", start, limits.piece_size)
        if number >= first:
            last = end == len(text)
            place = following if last else {**here, "part": number + 1}
            yield Piece(text[start:end], start == 0, last, held), place
        start = end
        number += 1


def _piece_end(text: AnyStr, line_end: AnyStr, start: int, size: int) -> int:
    """Where the piece that begins at `start` ends.

    It ends after the first line end from `size` on, or after twice as much if there is none.
    """
    end = text.find(line_end, start + size - 1, start + 2 * size)
    return end + 1 if end >= 0 else min(start + 2 * size, len(text))


def _open_binary(path: Path, kind: FileKind, block: int) -> BinaryIO:
    if kind.compression is None:
        return path.open("rb", buffering=block)
    from pyarrow import input_stream

    stream = input_stream(str(path), compression=kind.compression, buffer_size=block)
    return cast("BinaryIO", io.BufferedReader(stream, block))


def _go_to(file: BinaryIO, offset: int, block: int) -> None:
    """Go to a byte of the decompressed text.

    Raises EOFError if a compressed file ends before it: it is not the file that was read.
    """
    if file.seekable():
        file.seek(offset)
        return
    while offset:
        skipped = len(file.read(min(offset, block)))
        if not skipped:
            raise EOFError("it is shorter than it was")
        offset -= skipped


def _txt_pieces(file: BinaryIO, after: Position, limits: DataLimits) -> Iterator[Placed]:
    """The documents of a text: each ends with the file, or before a line <|endoftext|>.

    A document of up to `document_bytes` is one piece; a longer one is cut where lines end.
    """
    offset = int(after.get("offset", 0))  # where buffer[0] lies in the text
    inside = bool(after.get("inside"))  # in the middle of a document of several pieces
    _go_to(file, offset, limits.read_bytes)
    buffer, start, at_end = b"", 0, False
    while True:
        # The buffer holds more than a piece and the mark behind it, or the rest of the file: so it
        # is known of each piece whether it is the last one of its document.
        longest = 2 * limits.piece_size if inside else limits.document_bytes
        if not at_end and len(buffer) - start <= longest + _MARK_BYTES:
            more = file.read(limits.read_bytes)
            at_end = not more
            buffer, offset, start = buffer[start:] + more, offset + start, 0
            continue
        if start >= len(buffer):
            return
        if not inside and (mark := _END_OF_TEXT.match(buffer, start)):
            start = mark.end()  # a document without text
            continue
        document = _document_end(buffer, start, longest)
        if document is None or inside:
            end = _piece_end(buffer, b"\n", start, limits.piece_size)
            if document is None or end < document[0]:
                end = _character_border(buffer, end) if end < len(buffer) else end
                piece = Piece(_text(buffer[start:end]), not inside, ends_document=False)
                inside, start = True, end
                yield piece, {"offset": offset + end, "inside": True}
                continue
        end, follows = document
        text, first = _text(buffer[start:end]), not inside
        inside, start = False, follows
        if text or not first:
            yield Piece(text, first), {"offset": offset + follows}


def _document_end(buffer: bytes, start: int, longest: int) -> tuple[int, int] | None:
    """Where the document around `start` ends, and where the next one begins.

    None: it has more than `longest` bytes from `start` on.
    """
    stop = start + longest + _MARK_BYTES
    if buffer.find(b"<|endoftext|>", start, stop) >= 0:
        mark = _LATER_END_OF_TEXT.search(buffer, start + 1, stop)
        if mark and mark.start() - start <= longest:
            return mark.start(), mark.end()
    return (len(buffer), len(buffer)) if len(buffer) - start <= longest else None


def _text(raw: bytes) -> str:
    """Without the marks of byte order at the start of lines: files that have one are joined."""
    text = raw.decode()
    return _JOINED.sub("", text) if _BYTE_ORDER_MARK in text else text


def _character_border(buffer: bytes, end: int) -> int:
    """The last byte up to `end` that begins a character. A character has at most 4 bytes."""
    for border in range(end, end - 4, -1):
        if buffer[border] & 0xC0 != 0x80:
            return border
    return end  # this is no UTF-8, which the decoder is about to report


def _jsonl_pieces(
    file: BinaryIO, name: str, column: str, after: Position, limits: DataLimits
) -> Iterator[Placed]:
    offset, number = int(after.get("offset", 0)), int(after.get("line", 0))
    first = int(after.get("part", 0))
    _go_to(file, offset, limits.read_bytes)
    while line := file.readline(limits.max_row_bytes + 1):
        number += 1
        where = f"{name}, line {number}"
        if len(line) > limits.max_row_bytes:
            raise _too_long(where, limits)
        text = line.decode().removeprefix(_BYTE_ORDER_MARK)
        begin, offset = offset, offset + len(line)
        if not text or text.isspace():
            continue
        value = _json_value(text, column, where)
        if b"\\u" in line:
            value = _without_lone_surrogates(value)
        here, following = {"offset": begin, "line": number - 1}, {"offset": offset, "line": number}
        yield from row_pieces(value, limits, first, here, following)
        first = 0


def _json_value(line: str, column: str, where: str) -> str:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{where} is not JSON ({error}): {_ROW_ADVICE}") from error
    if not isinstance(row, dict):
        raise Damaged(f"{where} is not a JSON object: {_ROW_ADVICE}")
    if column not in row:
        raise no_column(column, row, where)
    return text_of(row[column], column, where)


def _without_lone_surrogates(text: str) -> str:
    """Replace half a surrogate pair, which JSON can spell and which is no character, by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _parquet_pieces(
    path: Path, name: str, column: str, after: Position, limits: DataLimits
) -> Iterator[Placed]:
    from pyarrow.parquet import ParquetFile

    row, first = int(after.get("row", 0)), int(after.get("part", 0))
    # With buffer_size a column is read page by page, and not whole: a row group can have
    # many gigabytes.
    with ParquetFile(path, buffer_size=limits.read_bytes, pre_buffer=False) as file:
        if column not in file.schema_arrow.names:
            raise no_column(column, file.schema_arrow.names, name)
        group_start = 0  # number of the group's first row
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < group_start + rows:
                for value in _group_values(file, group, column, row - group_start, limits):
                    if isinstance(value, _TooLong):
                        raise _too_long(f"{name}, row {row + 1}", limits)
                    text = text_of(value, column, name)
                    yield from row_pieces(text, limits, first, {"row": row}, {"row": row + 1})
                    row, first = row + 1, 0
            group_start += rows


class _TooLong:
    """Stands for a value above the limit."""


def _group_values(
    file: Any, group: int, column: str, skip: int, limits: DataLimits
) -> Iterator[object]:
    """The values of one row group without the first `skip`. Few rows are decoded at a time."""
    mean = _mean_bytes(file.metadata.row_group(group), column)
    if mean > limits.max_row_bytes:
        yield _TooLong()
    batches = file.iter_batches(
        batch_size=max(1, min(_BATCH_ROWS, 4 * limits.read_bytes // max(1, mean))),
        row_groups=[group],
        columns=[column],
        use_threads=False,
    )
    for batch in batches:
        if skip >= len(batch):
            skip -= len(batch)
            continue
        values = batch.column(0)[skip:]
        if batch.nbytes > limits.max_row_bytes:
            for value in values:
                yield _TooLong() if _bytes_of(value) > limits.max_row_bytes else value.as_py()
        else:
            yield from values.to_pylist()
        skip = 0


def _bytes_of(value: Any) -> int:
    """The size of an Arrow value that is text or binary; 0 for another type."""
    buffer = value.as_buffer() if hasattr(value, "as_buffer") else None
    return 0 if buffer is None else int(buffer.size)


def _mean_bytes(group: Any, column: str) -> int:
    """The mean size of a row's text in a row group, by the file's own statistics."""
    chunks = [group.column(index) for index in range(group.num_columns)]
    sizes = [
        chunk.total_uncompressed_size
        for chunk in chunks
        if chunk.path_in_schema.split(".")[0] == column
    ]
    return int(sum(sizes)) // max(1, int(group.num_rows))


def _too_long(where: str, limits: DataLimits) -> ConfigError:
    return ConfigError(
        f"{where} is longer than {limits.max_row_bytes >> 20} MiB: cut it into several rows, or "
        "give the text as a .txt file"
    )
