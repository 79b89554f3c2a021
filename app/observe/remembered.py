"""A run that is read again and again: only what has changed is fetched.

One listing says what each object is by its etag. An object whose etag is as before is not read
again.
"""

from collections.abc import Iterator, Sequence

from app.errors import Damaged, NotFound
from app.observe.rows import Row, decode_rows
from app.run.layout import LATEST, METRICS_KEY
from app.stores.contract import MAX_GET_BYTES, ObjectInfo, ReadableStore, folder_of

_MOST_METRICS = 1 << 29  # bytes; a run keeps 35 MB of them at most
_MOST_ROWS = 100_000  # beyond that, every second row or fewer are read


class RunBelow:
    """The run `name` in the store of all runs: one client serves for all of them."""

    def __init__(self, place: ReadableStore, name: str) -> None:
        self._place, self._name = place, name

    @property
    def uri(self) -> str:
        return f"{self._place.uri.rstrip('/')}/{self._name}"

    def get(self, key: str, max_bytes: int = MAX_GET_BYTES) -> tuple[bytes, str]:
        return self._place.get(f"{self._name}/{key}", max_bytes)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        top = f"{self._name}/"
        for info in self._place.list(top + prefix):
            yield ObjectInfo(info.key.removeprefix(top), info.size, info.etag)


class RememberedStore:
    """What `store` held at the last `look`. Not for several threads at once."""

    def __init__(self, store: ReadableStore) -> None:
        self._store = store
        self._listed: dict[str, ObjectInfo] = {}
        self._contents: dict[str, tuple[str, bytes, str]] = {}

    @property
    def uri(self) -> str:
        return self._store.uri

    def look(self) -> None:
        """List the objects that there are now. Raises the store's errors."""
        # What LATEST names was there before LATEST: so it is read before the rest is listed.
        self._contents.pop(LATEST, None)
        try:
            content, etag = self._store.get(LATEST)
        except (NotFound, Damaged):
            content = None
        self._listed = {info.key: info for info in self._store.list("")}
        self._contents = {k: v for k, v in self._contents.items() if k in self._listed}
        if content is not None and LATEST in self._listed:
            self._contents[LATEST] = (self._listed[LATEST].etag, content, etag)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        folder = folder_of(prefix)
        return iter([info for key, info in self._listed.items() if key.startswith(folder)])

    def get(self, key: str, max_bytes: int = MAX_GET_BYTES) -> tuple[bytes, str]:
        info = self._listed.get(key)
        if info is None:
            raise NotFound(f"{self.uri}/{key} does not exist")
        known = self._contents.get(key)
        if known is None or known[0] != info.etag:
            content, etag = self._store.get(key, max_bytes)
            known = self._contents[key] = (info.etag, content, etag)
        if len(known[1]) > max_bytes:
            raise Damaged(f"{self.uri}/{key} has more than {max_bytes:,} bytes")
        return known[1], known[2]


class GrowingRows:
    """The rows of a run whose metrics.jsonl mostly grows: only its new lines are decoded."""

    def __init__(self, most_rows: int = _MOST_ROWS) -> None:
        self._most_rows = most_rows
        self._content = b""
        self._rows: list[Row] = []

    def read(self, store: ReadableStore) -> Sequence[Row]:
        """At most about `most_rows` rows. Raises Damaged for an object that is far too large, and
        the store's errors."""
        try:
            content, _ = store.get(METRICS_KEY, _MOST_METRICS)
        except NotFound:
            content = b""
        if content is self._content:
            return self._rows
        known = self._content
        grown = known.endswith(b"\n") and content.startswith(known)
        rows = [*self._rows, *decode_rows(content[len(known) :])[0]] if grown else None
        if rows is None or len(rows) > self._most_rows:
            rows = decode_rows(_sampled(content, self._most_rows))[0]
        self._content, self._rows = content, rows
        return rows


def _sampled(content: bytes, most_lines: int) -> bytes:
    """All of `content`, or every n-th line of it and the last one, at most `most_lines` of them.

    What is left out is not even decoded, which takes most of the time.
    """
    every = -(-content.count(b"\n") // max(1, most_lines - 1))
    if every <= 1:
        return content
    lines = content.splitlines(keepends=True)
    kept = lines[::every]
    if (len(lines) - 1) % every:
        kept.append(lines[-1])
    return b"".join(kept)
