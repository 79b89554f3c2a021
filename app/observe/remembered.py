"""A run that is read again and again: only what has changed is fetched.

One listing says what each object is by its etag. An object whose etag is as before is not read
again, unless it is a large one.
"""

from collections.abc import Iterator

from app.errors import Damaged, NotFound, Unserved
from app.run.layout import LATEST
from app.stores.contract import MAX_GET_BYTES, ObjectInfo, ReadableStore, folder_of

_MOST_KEPT = 1 << 21  # bytes of one object; who reads a larger one remembers what it made of it


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
        except (NotFound, Damaged, Unserved):  # who asks for it gets the same answer again
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
            known = (info.etag, content, etag)
            if len(content) <= _MOST_KEPT:
                self._contents[key] = known
        if len(known[1]) > max_bytes:
            raise Damaged(f"{self.uri}/{key} has more than {max_bytes:,} bytes")
        return known[1], known[2]
