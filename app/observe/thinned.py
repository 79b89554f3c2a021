"""The rows of a run for a page: as many as its curves can show, whatever lies in the store."""

import hashlib
import io
import logging
from collections.abc import Iterator, Sequence

from app.errors import NotFound
from app.observe.rows import Row, decode_rows
from app.run.layout import LOGS, METRICS_KEY
from app.stores.contract import ReadableStore

_MOST_BYTES = 1 << 26  # a run keeps 35 MB of rows at most
_MOST_ROWS = 20_000  # a curve is some hundred points wide
_NOT_EVALUATED = b'"validation_loss": null'  # as `encode_row` writes it

log = logging.getLogger(__name__)


def thinned_rows(store: ReadableStore) -> Sequence[Row]:
    """As `GrowingRows`, for who reads them once."""
    return GrowingRows().read(store)


class GrowingRows:
    """The rows of a run whose metrics.jsonl mostly grows: only its new lines are decoded, and
    nothing is read where its etag is as before. What was read is not kept but for its rows."""

    def __init__(self, most_rows: int = _MOST_ROWS, most_bytes: int = _MOST_BYTES) -> None:
        self._most_rows, self._most_bytes = most_rows, most_bytes
        self._etag = ""
        self._size, self._digest = 0, _digest(b"", 0)  # of what the rows are of
        self._rows: list[Row] = []

    def read(self, store: ReadableStore) -> Sequence[Row]:
        """At most `most_rows` rows; a line that cannot be read is left out.

        Raises Damaged for an object of more than `most_bytes`, and the store's errors.
        """
        listed = (info.etag for info in store.list(LOGS) if info.key == METRICS_KEY)
        etag = next(listed, "")
        if etag and etag == self._etag:
            return self._rows
        try:
            content, _ = store.get(METRICS_KEY, self._most_bytes)
        except NotFound:
            content = b""
        known = self._size
        whole = known == 0 or content[known - 1 : known] == b"\n"
        grown = whole and len(content) >= known and _digest(content, known) == self._digest
        rows, unreadable = decode_rows(content[known:]) if grown else ([], 0)
        rows = [*self._rows, *rows] if grown else rows
        if not grown or len(rows) > self._most_rows:
            rows, unreadable = decode_rows(b"".join(_thinned(content, self._most_rows)))
        if unreadable:
            log.warning("%s/%s: %d unreadable lines left out", store.uri, METRICS_KEY, unreadable)
        self._etag, self._rows = etag, rows
        self._size, self._digest = len(content), _digest(content, len(content))
        return rows


def _digest(content: bytes, size: int) -> bytes:
    """Of the first `size` bytes."""
    return hashlib.blake2b(memoryview(content)[:size]).digest()


def _thinned(content: bytes, most: int) -> Iterator[bytes]:
    """All lines of `content`, or every n-th of those with a validation loss, every m-th of the
    others, and the last one: at most `most`.

    What is left out is not even decoded, which takes most of the time. The few rows with a
    validation loss are left out only while they would be more than half of all.
    """
    lines = content.count(b"\n") + 1
    plain = content.count(_NOT_EVALUATED)
    evaluated = max(0, lines - plain)
    room = max(1, most - 1) if lines > most else lines
    for_evaluated = min(evaluated, max(1, room // 2))
    every = {
        False: -(-evaluated // max(1, for_evaluated)),
        True: max(1, -(-plain // max(1, room - for_evaluated))),
    }
    seen, last, shown = {False: 0, True: 0}, b"", True
    for line in io.BytesIO(content):
        kind = _NOT_EVALUATED in line
        shown = seen[kind] % max(1, every[kind]) == 0
        seen[kind] += 1
        last = line
        if shown:
            yield line
    if not shown:
        yield last
