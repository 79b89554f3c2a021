"""waiting.json: what a start is doing that does not hold the run yet.

Preparing data and waiting for the lease can take minutes, and only the holder of the lease may
write to the run. So a start tells in an object of its own what it is doing, and removes it once
it holds the lease or gives up. Whoever writes last is shown. Nobody decides anything by it.

It is written on a thread of its own, so that no store holds the start up, and only by a start that
takes longer than a moment.
"""

import logging
import threading
import time
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from app.errors import AppError, NotFound
from app.failures import first_line
from app.run.layout import WAITING
from app.stores.contract import ReadableStore, Store
from app.stores.documents import decode_document, encode_document

_FIRST_AFTER = 2.0  # seconds
_SHORTEST_PAUSE = 3.0  # seconds between two writes
_JOIN_SECONDS = 2.0

_Moment = Annotated[float, Field(ge=-62_135_596_800, lt=253_402_300_800)]  # years 1 to 9999

log = logging.getLogger(__name__)


class Waiting(BaseModel):
    """waiting.json. `at` and `since` are in Unix seconds of the writer's clock: of this writing,
    and of the beginning. It is written every `every` seconds."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    holder: str = Field(min_length=1, max_length=500)
    doing: str = Field(max_length=200)
    since: _Moment
    at: _Moment
    every: float = Field(gt=0, le=3_600)


def read_waiting(store: ReadableStore) -> Waiting | None:
    """None if there is none. Raises Damaged, and the store's errors."""
    try:
        content, _ = store.get(WAITING)
    except NotFound:
        return None
    return decode_document(content, Waiting, f"{store.uri}/{WAITING}")


class WaitingNote:
    """Tells in waiting.json what this start is doing, until it is closed.

    `doing` may be set at any time. `ttl` is LEASE_TTL in seconds: a start writes as often as a
    holder renews. Failures are said once and stop nothing.
    """

    def __init__(
        self, store: Store, holder: str, doing: str, ttl: float, first_after: float = _FIRST_AFTER
    ) -> None:
        self.doing = doing
        self._store, self.holder, self._first_after = store, holder, first_after
        self._every, self._since = max(_SHORTEST_PAUSE, ttl / 3), time.time()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="waiting", daemon=True)

    def start(self) -> Self:
        self._thread.start()
        return self

    def close(self) -> None:
        """Remove what was written. Waits no longer than a moment for a store that is silent."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        if self._stop.wait(self._first_after):
            return
        complained = False
        while True:
            try:
                self._write()
            except AppError as error:
                if not complained:
                    log.warning("what this start is doing is not shown: %s", first_line(error))
                complained = True
            if self._stop.wait(self._every):
                break
        try:
            self._remove()
        except AppError as error:
            if not complained:
                log.warning("%s is left behind: %s", WAITING, first_line(error))

    def _write(self) -> None:
        told = Waiting(
            holder=self.holder,
            doing=self.doing[:200],
            since=self._since,
            at=time.time(),
            every=self._every,
        )
        self._store.put(WAITING, [encode_document(told)])

    def _remove(self) -> None:
        told = read_waiting(self._store)
        if self._store.deletes and told is not None and told.holder == self.holder:
            self._store.delete([WAITING])
