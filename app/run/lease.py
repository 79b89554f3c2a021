"""One writer per run: lease.json names the process that may commit.

A writer takes the lease by a conditional write that raises the epoch by one, renews it
three times per LEASE_TTL, and asks for it before it commits, moves or deletes anything. Who
has lost it stops; what it was still writing is under its own epoch and harms nobody.

Whether the holder is alive is observed, not computed: clocks of two machines differ, so
`expires_at` is for people. A record that has not changed for one time to live, by the
waiting process's own clock, is a dead holder's. A holder that died on this machine gave
back its kernel lock (`Store.exclusive_lock`), and need not be waited for.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import AppError, Damaged, Fenced, NotFound, Preempted
from app.stores.contract import ExclusiveLock, Store

LEASE = "lease.json"

_LARGEST_SHARED = 1 << 30
_JOIN_SECONDS = 5.0  # of a grace period, for a renewal that is under way

log = logging.getLogger(__name__)


class LeaseRecord(BaseModel):
    """lease.json. `ttl` in seconds, `expires_at` in Unix seconds (informative).

    `lock_scope` is where the holder keeps the store's exclusive lock; "" if it has none.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    holder: str = Field(min_length=1)
    epoch: int = Field(ge=1)
    renewal: int = Field(ge=0)
    ttl: float = Field(gt=0, le=3_600)
    expires_at: float
    released: bool = False
    lock_scope: str = ""


@dataclass(frozen=True)
class Clock:
    """Seconds. Tests hand in their own."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    unix: Callable[[], float] = time.time


class Lease:
    """The right to write to a run. `epoch` is 0 until `acquire` returns.

    Where the store's conditional writes are not atomic, `protected` is False: two
    processes that start at the same moment may both acquire it.
    """

    def __init__(self, store: Store, ttl: float, holder: str, clock: Clock | None = None) -> None:
        self.holder, self.epoch = holder, 0
        self._store, self._ttl, self._clock = store, ttl, clock or Clock()
        self._record: LeaseRecord | None = None
        self._etag = ""
        self._etags: dict[str, str | None] = {}
        self._kernel_lock: ExclusiveLock | None = None
        self._lost = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def lost(self) -> bool:
        """Another process was seen to hold the run. `check` says who."""
        return self._lost.is_set()

    @property
    def protected(self) -> bool:
        return self._store.conditional_writes

    def acquire(
        self,
        wait: float,
        on_wait: Callable[[str], None],
        stopping: Callable[[], bool],
        above: int = 0,
    ) -> None:
        """Take the lease, waiting `wait` seconds for a live holder to end.

        Beyond `wait`, it takes at most one time to live to tell a live holder from a dead
        one. The epoch is greater than `above`, also where lease.json was deleted. `on_wait`
        gets a line for the log when waiting begins and ends. Raises Fenced (naming the
        holder), Preempted when `stopping()`, Damaged, and the store's errors.
        """
        try:
            self._acquire(wait, on_wait, stopping, above)
        except BaseException:
            self.release()
            raise

    def start_renewing(self) -> None:
        """Renew every third of the time to live, in a daemon thread, until `release`."""
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)
        self._thread.start()

    def renew(self) -> None:
        """Show that this process is alive. Sets `lost` where the lease is another's."""
        renewed = self._held().model_copy(
            update={
                "renewal": self._held().renewal + 1,
                "expires_at": self._clock.unix() + self._ttl,
            }
        )
        etag = self._store.put_if_match(LEASE, _encode(renewed), self._etag)
        if etag is not None:
            self._record, self._etag = renewed, etag
            return
        # An earlier renewal of our own may have arrived without its answer reaching us.
        current = self._read()
        if current is not None and self._is_ours(current[0]):
            self._record, self._etag = current
        else:
            self._lost.set()

    def check(self) -> None:
        """Return if this process still holds the run. To be asked before anything final.

        Raises Fenced, Damaged, and the store's errors.
        """
        current = self._read()
        if current is not None and self._is_ours(current[0]):
            return
        self._lost.set()
        if current is None:
            raise Fenced(
                f"{self._store.uri}/{LEASE} was deleted while this process held it (epoch "
                f"{self.epoch}): it stops, the run may be removed. Start again to continue"
            )
        record = current[0]
        raise Fenced(
            f"{self._store.uri} was taken over by {record.holder} (epoch {record.epoch}, ours was "
            f"{self.epoch}): this process stops and commits nothing more"
        )

    def put(self, key: str, content: bytes) -> None:
        """Replace an object that every attempt writes under the same name.

        Raises Fenced where this process has lost the run. One that loses it after this look
        replaces nothing that its successor wrote: the object is then not the one it knows.
        """
        while True:
            if key not in self._etags:
                self._etags[key] = self._current_etag(key)
            self.check()
            known = self._etags[key]
            if known is None:
                etag = self._store.put_if_absent(key, content)
            else:
                etag = self._store.put_if_match(key, content, known)
            if etag is not None:
                self._etags[key] = etag
                return
            del self._etags[key]  # a successor's write, or the last one of a predecessor

    def release(self) -> None:
        """Stop renewing and let the next process start at once, if the lease is still ours."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=_JOIN_SECONDS)
        try:
            if self._record is not None and not self.lost and not self._still_renewing():
                self._mark_released()
        except AppError as error:
            log.warning("the lease was not given back, the next start may wait for it: %s", error)
        finally:
            self._drop_kernel_lock()

    def _acquire(
        self,
        wait: float,
        on_wait: Callable[[str], None],
        stopping: Callable[[], bool],
        above: int,
    ) -> None:
        started = since = self._clock.monotonic()
        watched: str | None = None
        announced = False
        while True:
            if self._kernel_lock is None:
                self._kernel_lock = self._store.exclusive_lock()
            asked = self._clock.monotonic()
            current = self._read()
            if current is None:
                if self._take(None, "", above):
                    return
            elif self._is_own_write(current[0]):
                self._hold(*current)
                return
            else:
                record, etag = current
                renewed = watched not in (None, etag)
                if etag != watched:
                    watched, since = etag, self._clock.monotonic()
                # From one answer to the next question: a slow store makes no holder look silent.
                reason = self._vacant(record, asked - since)
                if reason is not None and self._take(record, etag, above):
                    if reason:
                        on_wait(f"taking over from {record.holder}, {reason}")
                    return
                if reason is None and renewed and asked - started >= wait:
                    raise Fenced(_held_elsewhere(self._store.uri, record, wait))
                if reason is None and not announced:
                    announced = True
                    on_wait(_waiting(record, wait))
            if stopping():
                raise Preempted(
                    "stopped while waiting for the run's lease: nothing new to save; "
                    "start again to continue"
                )
            self._clock.sleep(min(1.0, self._ttl / 10))

    def _vacant(self, record: LeaseRecord, silence: float) -> str | None:
        """Why the lease may be taken ("": nothing to tell), or None."""
        if record.released:
            return ""
        lock = self._kernel_lock
        if lock is not None and lock.scope == record.lock_scope:
            return "which ended on this machine without giving the lease back"
        if silence >= record.ttl:
            return f"which has been silent for {silence:.0f} s"
        return None

    def _take(self, previous: LeaseRecord | None, etag: str, above: int) -> bool:
        """Write our record over the one of `etag`. False if somebody else was faster."""
        record = LeaseRecord(
            holder=self.holder,
            epoch=max(above, previous.epoch if previous else 0) + 1,
            renewal=0,
            ttl=self._ttl,
            expires_at=self._clock.unix() + self._ttl,
            lock_scope=self._kernel_lock.scope if self._kernel_lock else "",
        )
        content = _encode(record)
        if previous is None:
            new_etag = self._store.put_if_absent(LEASE, content)
        else:
            new_etag = self._store.put_if_match(LEASE, content, etag)
        if new_etag is None:
            return False
        self._hold(record, new_etag)
        return True

    def _hold(self, record: LeaseRecord, etag: str) -> None:
        self._record, self._etag, self.epoch = record, etag, record.epoch

    def _held(self) -> LeaseRecord:
        if self._record is None:
            raise AppError("the lease is used before it was acquired")
        return self._record

    def _is_own_write(self, record: LeaseRecord) -> bool:
        """A write of `acquire` that arrived without its answer reaching us."""
        return record.holder == self.holder and not record.released

    def _is_ours(self, record: LeaseRecord) -> bool:
        return self._is_own_write(record) and record.epoch == self.epoch

    def _keep_renewing(self) -> None:
        while not self._stop.wait(self._ttl / 3) and not self.lost:
            try:
                self.renew()
            except AppError as error:
                # The next commit asks again, and knows what to do about it.
                log.warning("the lease could not be renewed: %s", error)

    def _still_renewing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _current_etag(self, key: str) -> str | None:
        try:
            return self._store.get(key, max_bytes=_LARGEST_SHARED)[1]
        except NotFound:
            return None

    def _mark_released(self) -> None:
        released = self._held().model_copy(update={"released": True})
        if self._store.put_if_match(LEASE, _encode(released), self._etag) is not None:
            self._record = None

    def _drop_kernel_lock(self) -> None:
        if self._kernel_lock is not None:
            self._kernel_lock.release()
            self._kernel_lock = None

    def _read(self) -> tuple[LeaseRecord, str] | None:
        try:
            content, etag = self._store.get(LEASE)
        except NotFound:
            return None
        try:
            return LeaseRecord.model_validate_json(content), etag
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"])) or "content"
            raise Damaged(
                f"{self._store.uri}/{LEASE} is damaged ({where}: {problem['msg']}). Make sure that "
                "no process trains this run, then delete that file and start again"
            ) from error


def holder_identity() -> str:
    """host:process:random, so that no two processes share it, on one machine or on many."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def _encode(record: LeaseRecord) -> bytes:
    return (json.dumps(record.model_dump(), indent=1) + "\n").encode()


def _waiting(record: LeaseRecord, wait: float) -> str:
    return (
        f"the run is held by {record.holder} (epoch {record.epoch}): waiting up to {wait:g} s for "
        f"it to end, or for {record.ttl:g} s of silence"
    )


def _held_elsewhere(uri: str, record: LeaseRecord, wait: float) -> str:
    return (
        f"{uri} is held by {record.holder} (epoch {record.epoch}), which is alive after LEASE_WAIT="
        f"{wait:g} s: stop it, or choose another RUN_NAME"
    )
