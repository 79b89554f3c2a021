"""A store whose user dies in the middle of its writes."""

from typing import Any

from app.stores.contract import Data, Store


class Died(BaseException):
    """The process is gone; what it was about to write is not written."""


class MortalStore:
    """A store whose user dies at instant number `dies_at`; 0: it lives on.

    Each write has an instant before it and one after it, and a move one more in its middle.
    """

    def __init__(self, store: Store, dies_at: int) -> None:
        self._store, self._left = store, dies_at

    def _instant(self) -> None:
        self._left -= 1
        if self._left == 0:
            raise Died

    def put(self, key: str, data: Data) -> None:
        self._instant()
        self._store.put(key, data)
        self._instant()

    def put_if_absent(self, key: str, content: bytes) -> str | None:
        self._instant()
        etag = self._store.put_if_absent(key, content)
        self._instant()
        return etag

    def move(self, source_key: str, target_key: str) -> None:
        self._instant()
        self._store.put(target_key, [self._store.get(source_key)[0]])
        self._instant()  # S3 copies, and then deletes
        self._store.move(source_key, target_key)
        self._instant()

    def delete(self, keys: list[str]) -> None:
        for key in keys:
            self._instant()
            self._store.delete([key])
            self._instant()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)
