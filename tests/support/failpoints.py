"""Where the job of `tests.drills.kill_anywhere` dies: a wrapper round its store.

A failpoint is before and after each write, after each delete, between two buffers of a file on
a volume, and before each request of an upload to S3 and after its answer.
"""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from app.stores.contract import RESERVED, Data, Store
from app.stores.s3 import S3Store

OPERATIONS = {
    "data": 40,
    "upload": 80,
    "manifest": 6,
    "pointer": 6,
    "logs": 8,
    "prune": 10,
    "lease": 3,
    "renewal": 3,
    "record": 2,
}
"""The kinds of operations, and the last failpoint of each that is tried.

A whole run comes to about twice as many; one that finishes before it is killed costs time.
"""

KINDS = (*OPERATIONS, "instant", "instant", "instant")
"""Of one round of kills; an instant is one at a random time."""

ZOMBIES = ("data", "upload", "manifest", "pointer", "logs", "prune", "renewal")
"""Where an attempt is paused."""

_UPLOADING = {"PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"}


@dataclass
class Failpoint:
    """Die, or be paused, at failpoint number `at` of `category`.

    `writing` is held during conditional writes. A pause waits for it: one that came while
    another thread holds the volume's own lock would keep every successor out, with exit 75.
    Pauses count from the attempt's first write of its own on: who wakes up before it finds
    the run finished, and has nothing to do.
    """

    category: str
    at: int
    number: signal.Signals = signal.SIGKILL
    writing: Any = field(default_factory=threading.RLock)
    begun: bool = False
    _counting: Any = field(default_factory=threading.Lock)
    _passed: threading.Event = field(default_factory=threading.Event)

    def __str__(self) -> str:
        return f"at operation {self.at} of kind {self.category}"

    def reached(self, category: str) -> None:
        self.begun |= category == "data"
        if category != self.category or not (self.begun or self.number == signal.SIGKILL):
            return
        with self._counting:  # parts of an upload are sent in threads
            self.at -= 1
            due = self.at == 0
        if due and self.number == signal.SIGSTOP:
            with self.writing:  # the process stops late if another thread gets the signal
                signal.pthread_kill(threading.get_ident(), self.number)
            self._passed.set()
        elif due:
            os.kill(os.getpid(), self.number)

    def let_renewals_come(self) -> None:
        """No attempt is too fast for a failpoint that comes with time."""
        if self.category == "renewal":
            self._passed.wait()


class DeadlyData(Sequence[bytes | memoryview]):
    """Buffers of a file; before each of them, and after the last, is a failpoint."""

    def __init__(self, data: Data, failpoint: Failpoint) -> None:
        self._data, self._failpoint = data, failpoint

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: Any) -> Any:
        return self._data[index]

    def __iter__(self) -> Iterator[bytes | memoryview]:
        for buffer in self._data:
            self._failpoint.reached("upload")
            yield buffer
        self._failpoint.reached("upload")


class DeadlyStore:
    """A store in front of another one, in which every write can be the last."""

    def __init__(self, store: Store, failpoint: Failpoint) -> None:
        self._store, self._failpoint = store, failpoint
        if isinstance(store, S3Store):
            events = store._client.meta.events
            events.register("before-send.s3", self._before_request)
            events.register("after-call.s3", self._after_answer)

    def put(self, key: str, data: Data) -> None:
        category = category_of(key)
        if category == "manifest":
            self._failpoint.let_renewals_come()
        self._failpoint.reached(category)
        if category == "data" and not isinstance(self._store, S3Store):
            data = DeadlyData(data, self._failpoint)
        self._store.put(key, data)
        self._failpoint.reached(category)

    def put_if_absent(self, key: str, content: bytes) -> str | None:
        return self._around(key, content, lambda: self._store.put_if_absent(key, content))

    def put_if_match(self, key: str, content: bytes, etag: str) -> str | None:
        return self._around(key, content, lambda: self._store.put_if_match(key, content, etag))

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._failpoint.reached("prune")
            self._store.delete([key])
        self._failpoint.reached("prune")

    def _around(self, key: str, content: bytes, write: Callable[[], str | None]) -> str | None:
        category = "renewal" if _renews(key, content) else category_of(key)
        self._failpoint.reached(category)
        with self._failpoint.writing:
            etag = write()
        self._failpoint.reached(category)
        return etag

    def _before_request(self, event_name: str, request: Any, **_: Any) -> None:
        self._request(event_name, request.url)

    def _after_answer(self, event_name: str, http_response: Any, **_: Any) -> None:
        self._request(event_name, http_response.url)

    def _request(self, event_name: str, url: str) -> None:
        root = f"/{self._store.uri.removeprefix('s3://')}/"
        key = urlsplit(url).path.removeprefix(root)
        if event_name.rsplit(".", 1)[-1] in _UPLOADING and category_of(key) == "data":
            self._failpoint.reached("upload")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def category_of(key: str) -> str:
    names = {
        "LATEST": "pointer",
        "lease.json": "lease",
        "run.json": "record",
        "source.json": "record",
        "manifest.json": "manifest",
    }
    name = key.rsplit("/", 1)[-1]
    if name.startswith(RESERVED):
        return "check"
    if key.startswith("inputs/"):
        return "record"
    return names.get(name, "logs" if key.startswith("logs/") else "data")


def _renews(key: str, content: bytes) -> bool:
    if category_of(key) != "lease":
        return False
    record = json.loads(content)
    return record["renewal"] > 0 and not record["released"]
