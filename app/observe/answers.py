"""Whether a store answers: a reading may take long and be well, one request may not."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from app.stores.contract import MAX_GET_BYTES, ObjectInfo
from app.stores.opening import Place


class Requests:
    """What is asked of a store at this moment, by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun: dict[int, float] = {}

    @contextmanager
    def one(self) -> Iterator[None]:
        """A request is under way in this block."""
        thread = threading.get_ident()
        with self._lock:
            self._begun[thread] = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                del self._begun[thread]

    def silent_for(self) -> float:
        """For how many seconds the oldest request has had no answer; 0 if there is none."""
        with self._lock:
            return time.monotonic() - min(self._begun.values()) if self._begun else 0.0


class AskedPlace:
    """`place`, whose `requests` are known while they are under way."""

    def __init__(self, place: Place, requests: Requests) -> None:
        self._place, self._requests = place, requests

    @property
    def uri(self) -> str:
        return self._place.uri

    def get(self, key: str, max_bytes: int = MAX_GET_BYTES) -> tuple[bytes, str]:
        with self._requests.one():
            return self._place.get(key, max_bytes)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        with self._requests.one():
            return iter(list(self._place.list(prefix)))

    def folders(self) -> Sequence[str]:
        with self._requests.one():
            return self._place.folders()
