"""A store, or a place of stores, that writes down what is asked, and fails where it is told."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from app.stores.contract import MAX_GET_BYTES, ObjectInfo


class Asked:
    """`failing` is called with each key that is to be read, and may raise."""

    def __init__(self, store: Any, failing: Callable[[str], object] = str) -> None:
        self._store, self._failing = store, failing
        self.asked: list[str] = []

    @property
    def uri(self) -> str:
        return str(self._store.uri)

    def get(self, key: str, max_bytes: int = MAX_GET_BYTES) -> tuple[bytes, str]:
        self.asked.append(key)
        self._failing(key)
        content, etag = self._store.get(key, max_bytes)
        return content, etag

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.asked.append(f"list {prefix}")
        return iter(list(self._store.list(prefix)))

    def folders(self) -> Sequence[str]:
        self.asked.append("folders")
        return list(self._store.folders())
