"""Runs as somebody looks at them: read when asked for, never more often than every few seconds.

A store may be slow, silent or away. So it is read on a thread: whoever asks waits for a moment, and
then gets what was read before, with a sentence about what is wrong.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from app.errors import AppError, Damaged, IncompatibleRun
from app.observe.activity import Activity, activity_of
from app.observe.markup import ago
from app.observe.remembered import GrowingRows, RememberedStore, RunBelow
from app.observe.reported_run import ReportedRun, read_run
from app.run.checkpoints import read_latest
from app.run.journal import AttemptRecord, read_attempts
from app.run.layout import ATTEMPTS, AttemptName, CheckpointName, file_of
from app.run.lease import read_lease
from app.run.record import load_record
from app.run.waiting import read_waiting
from app.stores.contract import ReadableStore, is_key
from app.stores.opening import Place

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PageLimits:
    """`fresh_seconds`: what is younger is not read again; `list_seconds` is that of the list of
    runs, of which `most_runs` are shown. `patience_seconds`: how long a page waits for the store.
    """

    fresh_seconds: float = 3.0
    list_seconds: float = 10.0
    patience_seconds: float = 2.0
    most_runs: int = 100


@dataclass(frozen=True)
class Seen(Generic[T]):
    """The last thing that was read, if there is one yet, and what is wrong at the moment."""

    value: T | None
    problem: str | None


class Watched(Generic[T]):
    """Something that is read again when somebody asks for it and the last time was a while ago."""

    def __init__(
        self,
        read: Callable[[], T],
        what: str,
        limits: PageLimits,
        fresh_seconds: float | None = None,
    ) -> None:
        """`what` is what is read, for the sentence about what is wrong."""
        self._read, self._what, self._patience = read, what, limits.patience_seconds
        self._fresh = limits.fresh_seconds if fresh_seconds is None else fresh_seconds
        self._changed = threading.Condition()
        self._reading_since: float | None = None
        self._tried_at: float | None = None
        self._read_at: float | None = None
        self._value: T | None = None
        self._error: str | None = None

    def now(self) -> Seen[T]:
        with self._changed:
            old = self._tried_at is None or time.monotonic() - self._tried_at >= self._fresh
            if self._reading_since is None and old:
                self._reading_since = time.monotonic()
                threading.Thread(target=self._run, name="read-store", daemon=True).start()
            self._changed.wait_for(lambda: self._reading_since is None, self._patience)
            return Seen(self._value, self._problem())

    def _problem(self) -> str | None:
        since = self._reading_since
        problem = self._error
        if since is not None and (waited := time.monotonic() - since) > 1:
            problem = f"the store has not answered for {waited:.0f} s"
        if problem is None:
            return None
        old = (
            "" if self._read_at is None else f" (last read {ago(time.monotonic() - self._read_at)})"
        )
        return f"{self._what} cannot be read now, and is tried again{old}: {problem}"

    def _run(self) -> None:
        value, error = None, None
        try:
            value = self._read()
        except AppError as failure:
            error = str(failure)
        except Exception:  # a bug of the page: the next visitor may find another store
            log.exception("%s was not read", self._what)
            error = "a bug of this page, whose log has more"
        with self._changed:
            self._tried_at, self._error, self._reading_since = time.monotonic(), error, None
            if error is None:
                self._value, self._read_at = value, self._tried_at
            self._changed.notify_all()


@dataclass(frozen=True)
class RunLine:
    """A run in the list of runs. `step` is that of its newest checkpoint."""

    name: str
    activity: Activity
    step: int | None


class LiveRuns:
    """All runs below CHECKPOINT_URI, which is `uri`. `open_all` opens the store of all of them."""

    def __init__(self, open_all: Callable[[], Place], uri: str, limits: PageLimits) -> None:
        self._open_all, self._limits = open_all, limits
        self._opened: Place | None = None
        self._runs: dict[str, Watched[ReportedRun]] = {}
        self._lock = threading.Lock()
        self._list = Watched(self._read_list, uri, limits, limits.list_seconds)

    def all(self) -> Seen[Sequence[RunLine]]:
        return self._list.now()

    def run(self, name: str) -> Seen[ReportedRun]:
        """What there is of a run. The caller has seen `name` in the list of runs."""
        with self._lock:
            if name not in self._runs:
                self._runs[name] = Watched(self._reader(name), f"run {name}", self._limits)
            watched = self._runs[name]
        return watched.now()

    def _reader(self, name: str) -> Callable[[], ReportedRun]:
        store, rows = RememberedStore(RunBelow(self._place(), name)), GrowingRows()

        def read() -> ReportedRun:
            store.look()
            return read_run(store, rows.read)

        return read

    def _place(self) -> Place:
        if self._opened is None:
            self._opened = self._open_all()
        return self._opened

    def _read_list(self) -> Sequence[RunLine]:
        place = self._place()
        names = (name for name in place.folders() if is_key(name))
        lines = (self._line(RunBelow(place, name), name) for name in names)
        return list(islice((line for line in lines if line is not None), self._limits.most_runs))

    def _line(self, store: ReadableStore, name: str) -> RunLine | None:
        """None for a folder that is no run. Reads a few small objects."""
        latest = CheckpointName.parse(read_latest(store) or "")
        step = latest.step if latest else None
        try:
            lease, waiting = read_lease(store), read_waiting(store)
            if lease is None and waiting is None and step is None and not load_record(store):
                return None
        except (Damaged, IncompatibleRun) as error:
            return RunLine(name, Activity("failed", str(error), ()), step)
        held = lease[0] if lease else None
        ended = _newest_attempt(store) if held is None or held.released else []
        told = ReportedRun(name, None, [], ended, lease=held, waiting=waiting)
        return RunLine(name, activity_of(told), step)


def _newest_attempt(store: ReadableStore) -> list[AttemptRecord]:
    """The record of the newest attempt, which says why it ended; none where there is none."""
    found = (AttemptName.parse(file_of(info.key)) for info in store.list(ATTEMPTS))
    newest = max((name for name in found if name is not None), default=None, key=lambda n: n.epoch)
    return read_attempts(store, [newest] if newest else [])
