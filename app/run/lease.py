"""One writer per run: lease.json names the process that may commit.

A process takes the lease by a conditional write that raises the epoch by one. It renews the lease
three times per LEASE_TTL, and looks whether it still holds it before it commits, moves or deletes
anything. A process that finds that it has lost the lease stops. What it was still writing at that
moment carries its own epoch in its name, so it never mixes with what its successor writes.

A waiting process decides by its own clock whether the holder is alive: it takes a record that has
not changed for one time to live as that of a dead holder. The clocks of two machines differ, so
nothing is computed from `expires_at`, which is there for people. The kernel releases the lock of
a holder that died on this machine (`Store.exclusive_lock`): then nobody waits.
"""

import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pydantic import Field

from app.errors import AppError, Damaged, Fenced, NotFound, Preempted, Unavailable
from app.run.clock import Clock
from app.run.layout import HIGHEST_EPOCH, LEASE
from app.state.identity import HIGHEST_STEP
from app.stores.contract import ExclusiveLock, ReadableStore, Store
from app.stores.documents import Document, decode_document, encode_document
from app.stores.swap import SWAP_PAUSES, swap, swap_refused

_MOST_REFUSALS = 30  # more say that the store refuses, not that others are faster
_JOIN_SECONDS = 5.0  # what `release` waits, within the grace period, for a running renewal

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Doing:
    """What the holder of the lease is doing, for people who look at the run; nobody decides
    anything by it. `step` is the last finished one, if it trains."""

    what: str = ""
    step: int | None = None


class LeaseRecord(Document):
    """lease.json. `ttl` is in seconds, `expires_at` in Unix seconds.

    `lock_scope` is the scope of the exclusive lock that the holder has; "" if it has none. `doing`
    and `step` are what the holder was doing when it wrote the record: see `Doing`.
    """

    holder: str = Field(min_length=1, max_length=500)
    epoch: int = Field(ge=1, le=HIGHEST_EPOCH)
    renewal: int = Field(ge=0, lt=2**53)
    ttl: float = Field(gt=0, le=3_600)
    expires_at: float = Field(ge=-1e12, le=1e12)
    released: bool = False
    lock_scope: str = Field("", max_length=500)
    doing: str = Field("", max_length=200)
    step: int | None = Field(None, ge=0, le=HIGHEST_STEP)

    @property
    def renewed_at(self) -> float:
        """When the holder last showed that it lives, in Unix seconds of its own clock."""
        return self.expires_at - self.ttl


class WriteRight(Protocol):
    """What a function that writes to the run needs of its `Lease`."""

    def check(self) -> None: ...
    def put(self, key: str, content: bytes) -> None: ...


class Lease:
    """The right to write to a run, for as long as it is renewed.

    `epoch` is 0 until `acquire` returns. Where the store's conditional writes are not atomic,
    `protected` is False: two processes that start at the same moment may both acquire the lease.
    `taken_from` is the record that `acquire` replaced, if there was one.
    `tells` is asked at each renewal what this process is doing, from the thread that renews. So
    telling it costs no request of its own.
    """

    def __init__(self, store: Store, ttl: float, holder: str, clock: Clock | None = None) -> None:
        self.holder, self.epoch = holder, 0
        self.taken_from: LeaseRecord | None = None
        self._store, self._ttl, self._clock = store, ttl, clock or Clock()
        self.tells: Callable[[], Doing] = Doing
        self._record: LeaseRecord | None = None
        self._etag = ""
        self._refused = 0  # tries to take the lease in which another process was faster
        self._etags: dict[str, str | None] = {}
        self._kernel_lock: ExclusiveLock | None = None
        self._lost = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def lost(self) -> bool:
        """Whether another process was seen to hold the run. `check` says which one."""
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

        After `wait`, it takes at most one more time to live to tell a live holder from a dead
        one. The new epoch is greater than `above`, also where lease.json was deleted. `on_wait`
        gets a line for the log when waiting begins and ends. Raises Unavailable, which names the
        holder, Preempted once `stopping()`, Damaged, and the store's errors.
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
        if self._record is None:
            raise AppError("the lease is used before it was acquired")
        told = self.tells()
        changes = {
            "renewal": self._record.renewal + 1,
            "expires_at": self._clock.unix() + self._ttl,
            "doing": told.what,
            "step": told.step,
        }
        renewed = self._record.model_copy(update=changes)
        etag = swap(self._store, LEASE, encode_document(renewed), self._etag)
        if etag is not None:
            self._record, self._etag = renewed, etag
            return
        # An earlier renewal by this process may have arrived although its answer did not.
        current = read_lease(self._store)
        if current is not None and self._is_ours(current[0]):
            self._record, self._etag = current
        else:
            self._lost.set()

    def check(self) -> None:
        """Return if this process still holds the run. To be called before anything final.

        Raises Fenced, Damaged, and the store's errors.
        """
        current = read_lease(self._store)
        if current is not None and self._is_ours(current[0]):
            return
        self._lost.set()
        if current is None:
            raise Fenced(
                f"{self._store.uri}/{LEASE} was deleted while this process held it (epoch "
                f"{self.epoch}): it stops, the run may be removed. Start again to continue"
            )
        record = current[0]
        if record.holder == self.holder and record.released:
            raise Fenced(
                f"{self._store.uri} was freed of this process (epoch {self.epoch}) by `checkpoints "
                "takeover`: it stops and commits nothing more"
            )
        raise Fenced(
            f"{self._store.uri} was taken over by {record.holder} (epoch {record.epoch}, ours was "
            f"{self.epoch}): this process stops and commits nothing more"
        )

    def put(self, key: str, content: bytes) -> None:
        """Replace an object that every attempt writes under the same key.

        Raises Fenced if this process has lost the run. It may also lose the run between the
        look at the lease and the write. Even then it replaces nothing that its successor wrote:
        that object has another etag than the one that this process knows. Raises Unavailable if
        the store goes on to refuse the write although this process holds the run.
        """
        for pause in SWAP_PAUSES:
            if key not in self._etags:
                self._etags[key] = self._store.etag(key)
            self.check()
            etag = swap(self._store, key, content, self._etags[key])
            if etag is not None:
                self._etags[key] = etag
                return
            # A successor wrote the object, or it is the last write of a predecessor.
            del self._etags[key]
            self._clock.sleep(pause)
        raise swap_refused(self._store, key, len(SWAP_PAUSES))

    def release(self) -> None:
        """Stop renewing. If this process still holds the lease, the next one can start at once."""
        self._stop.set()
        renewing = False
        if self._thread is not None:
            self._thread.join(timeout=_JOIN_SECONDS)
            renewing = self._thread.is_alive()
        try:
            if self._record is not None and not self.lost and not renewing:
                released = self._record.model_copy(update={"released": True})
                if swap(self._store, LEASE, encode_document(released), self._etag) is not None:
                    self._record = None
        except AppError as error:
            log.warning("the lease was not given back, the next start may wait for it: %s", error)
        finally:
            if self._kernel_lock is not None:
                self._kernel_lock.release()
                self._kernel_lock = None

    def _acquire(
        self, wait: float, on_wait: Callable[[str], None], stopping: Callable[[], bool], above: int
    ) -> None:
        started = since = self._clock.monotonic()
        watched: str | None = None
        announced = False
        while True:
            if self._kernel_lock is None:
                self._kernel_lock = self._store.exclusive_lock()
            asked = self._clock.monotonic()
            current = read_lease(self._store)
            if current is None:
                if self._take(None, None, above):
                    return
            elif self._is_own_write(current[0]):
                self._hold(*current)
                return
            else:
                record, etag = current
                renewed = watched not in (None, etag)
                if etag != watched:
                    watched, since = etag, self._clock.monotonic()
                # Silence is counted from one answer to the next question. So the time that a slow
                # store takes to answer does not make a live holder look dead.
                reason = self._vacant(record, asked - since)
                if reason is not None and self._take(record, etag, above):
                    if reason:
                        on_wait(f"taking over from {record.holder}, {reason}")
                    return
                if reason is None and renewed and asked - started >= wait:
                    raise Unavailable(_held_elsewhere(self._store.uri, record, wait))
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
        """Why the lease may be taken, or None if it may not. "" is no reason worth a line."""
        if record.released:
            return ""
        lock = self._kernel_lock
        if lock is not None and lock.scope == record.lock_scope:
            return "which ended on this machine without giving the lease back"
        if silence >= record.ttl:
            return f"which has been silent for {silence:.0f} s"
        return None

    def _take(self, previous: LeaseRecord | None, etag: str | None, above: int) -> bool:
        """Write a record of this process over that of `etag`. False if another was faster."""
        highest = max(above, previous.epoch if previous else 0)
        if highest >= HIGHEST_EPOCH:
            raise Damaged(
                f"{self._store.uri} has reached epoch {highest}, and no name can hold a higher "
                f"one: set {LEASE}, or the name that says so, right by hand"
            )
        told = self.tells()
        record = LeaseRecord(
            holder=self.holder,
            epoch=highest + 1,
            renewal=0,
            ttl=self._ttl,
            expires_at=self._clock.unix() + self._ttl,
            lock_scope=self._kernel_lock.scope if self._kernel_lock else "",
            doing=told.what,
            step=told.step,
        )
        self.taken_from = previous
        new_etag = swap(self._store, LEASE, encode_document(record), etag)
        if new_etag is None:
            self._refused += 1
            if self._refused >= _MOST_REFUSALS:
                raise swap_refused(self._store, LEASE, self._refused)
            return False
        self._hold(record, new_etag)
        return True

    def _hold(self, record: LeaseRecord, etag: str) -> None:
        self._record, self._etag, self.epoch = record, etag, record.epoch

    def _is_own_write(self, record: LeaseRecord) -> bool:
        """Whether this process wrote the record, perhaps without getting the answer."""
        return record.holder == self.holder and not record.released

    def _is_ours(self, record: LeaseRecord) -> bool:
        return self._is_own_write(record) and record.epoch == self.epoch

    def _keep_renewing(self) -> None:
        while not self._stop.wait(self._ttl / 3) and not self.lost:
            try:
                self.renew()
            except AppError as error:
                # The next commit looks at the lease again, and fails if it is lost by then.
                log.warning("the lease could not be renewed: %s", error)


def read_lease(store: ReadableStore) -> tuple[LeaseRecord, str] | None:
    """lease.json and its etag; None if there is none. Raises Damaged, and the store's errors."""
    place = f"{store.uri}/{LEASE}"

    def damaged(what: str) -> str:
        return (
            f"{place} is damaged ({what}). Make sure that no process trains this run, then "
            "delete that file and start again"
        )

    try:
        content, etag = store.get(LEASE)
    except NotFound:
        return None
    except Damaged as error:
        raise Damaged(damaged(str(error))) from error
    return decode_document(content, LeaseRecord, place, damaged=damaged), etag


def take_from(store: Store, record: LeaseRecord, etag: str) -> None:
    """Mark the lease as given back by its holder, so that the next start does not wait for it.

    A holder that lives after all ends with 79 when it looks at the lease. Raises Unavailable if
    the record is not that of `etag` any more, which shows that its holder lives.
    """
    if swap(store, LEASE, encode_document(record.model_copy(update={"released": True})), etag):
        return
    raise Unavailable(
        f"{record.holder} has renewed its lease on {store.uri} just now, so it lives: nothing was "
        "changed"
    )


def holder_identity() -> str:
    """host:process:random. No two processes have the same one, on one machine or on many."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def _waiting(record: LeaseRecord, wait: float) -> str:
    return (
        f"the run is held by {record.holder} (epoch {record.epoch}): waiting up to {wait:g} s for "
        f"it to end, or for {record.ttl:g} s of silence"
    )


def _held_elsewhere(uri: str, record: LeaseRecord, wait: float) -> str:
    return (
        f"{uri} is held by {record.holder} (epoch {record.epoch}), which is alive after LEASE_WAIT="
        f"{wait:g} s: start again when it has ended, stop it, or choose another RUN_NAME"
    )
