"""Runs as somebody looks at them: read when asked for, never more often than every few seconds.

A store may be slow, silent or away. So it is read on a thread: whoever asks waits for a moment, and
then gets what was read before, with a sentence about what is wrong.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.errors import AppError
from app.observe.answers import AskedPlace, Requests
from app.observe.listed import RunLine, RunList, holds_a_run, may_be_a_run
from app.observe.markup import ago
from app.observe.remembered import RememberedStore, RunBelow
from app.observe.reported_run import ReportedRun, read_run
from app.observe.rows import Row
from app.observe.thinned import GrowingRows
from app.stores.contract import ReadableStore
from app.stores.opening import Place

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PageLimits:
    """`fresh_seconds`: what is younger is not read again; `list_seconds` is that of the list of
    runs. What took long to read rests for `rest` times as long. `patience_seconds`: how long a page
    waits for the store. `silent_seconds`: from when on one request that has no answer is said.
    `most_remembered`: of so many runs it is remembered what was read.
    """

    fresh_seconds: float = 3.0
    list_seconds: float = 10.0
    rest: float = 4.0
    patience_seconds: float = 2.0
    silent_seconds: float = 5.0
    most_remembered: int = 8


@dataclass(frozen=True)
class Seen(Generic[T]):
    """The last thing that was read, if there is one yet, and what is wrong at the moment."""

    value: T | None
    problem: str | None


class Watched(Generic[T]):
    """Something that is read again when somebody asks for it and the last time was a while ago."""

    def __init__(
        self,
        read: Callable[[Requests], T],
        what: str,
        limits: PageLimits,
        fresh_seconds: float | None = None,
    ) -> None:
        """`read` tells when it asks the store. `what` is what is read, for the sentence about what
        is wrong."""
        self._read, self._what, self._limits = read, what, limits
        self._fresh = limits.fresh_seconds if fresh_seconds is None else fresh_seconds
        self._requests = Requests()
        self._changed = threading.Condition()
        self._reads = False
        self._again_at: float | None = None  # not before that time, once it was tried
        self._read_at: float | None = None
        self._value: T | None = None
        self._error: str | None = None

    @property
    def last(self) -> T | None:
        """What was read last, if anything was yet."""
        with self._changed:
            return self._value

    def now(self) -> Seen[T]:
        with self._changed:
            old = self._again_at is None or time.monotonic() >= self._again_at
            if not self._reads and old:
                self._reads = True
                threading.Thread(target=self._run, name="read-store", daemon=True).start()
            self._changed.wait_for(lambda: not self._reads, self._limits.patience_seconds)
            return Seen(self._value, self._problem())

    def _problem(self) -> str | None:
        """A reading may take long. What is wrong is a request that has no answer."""
        problem = self._error
        if (silent := self._requests.silent_for()) > self._limits.silent_seconds:
            problem = f"the store has not answered for {silent:.0f} s"
        if problem is None:
            return None
        old = (
            "" if self._read_at is None else f" (last read {ago(time.monotonic() - self._read_at)})"
        )
        return f"{self._what} cannot be read now, and is tried again{old}: {problem}"

    def _run(self) -> None:
        value, error, began = None, None, time.monotonic()
        try:
            value = self._read(self._requests)
        except AppError as failure:
            error = str(failure)
        except Exception:  # a bug of the page: the next visitor may find another store
            log.exception("%s was not read", self._what)
            error = "a bug of this page, whose log has more"
        with self._changed:
            now = time.monotonic()
            self._again_at = now + max(self._fresh, self._limits.rest * (now - began))
            self._error, self._reads = error, False
            if error is None:
                self._value, self._read_at = value, now
            self._changed.notify_all()


class LiveRuns:
    """All runs below CHECKPOINT_URI, which is `uri`. `open_all` opens the store of all of them."""

    def __init__(self, open_all: Callable[[], Place], uri: str, limits: PageLimits) -> None:
        self._open_all, self._limits = open_all, limits
        self._opened: Place | None = None
        self._opening = threading.Lock()
        self._one_at_a_time = threading.Lock()  # the rows of a run take memory while they are read
        self._runs: OrderedDict[str, Watched[ReportedRun]] = OrderedDict()
        self._lock = threading.Lock()
        listed = RunList()
        self._list = Watched(
            lambda asked: listed.read(self._place(asked)), uri, limits, limits.list_seconds
        )
        self._folders = Watched(self._read_folders, uri, limits)

    def all(self) -> Seen[Sequence[RunLine]]:
        """The runs, the newest first."""
        return self._list.now()

    def folders(self) -> Seen[Sequence[str]]:
        """The folders that may be runs, by name."""
        return self._folders.now()

    def names(self) -> Sequence[str]:
        """Of the runs, the newest first, as far as they were read: nothing is read for this."""
        lines = self._list.last
        return (self._folders.last or ()) if lines is None else [line.name for line in lines]

    def run(self, name: str) -> Seen[ReportedRun] | None:
        """What there is of a run; None where there is none of this name.

        The newest few that were asked for are remembered. Of one that is not, the store is asked
        whether it has a folder of this name: nobody is led anywhere else.
        """
        with self._lock:
            watched = self._runs.get(name)
        if watched is None:
            folders = self.folders()
            if folders.value is None:
                return Seen(None, folders.problem)
            if name not in folders.value:
                return None
        with self._lock:
            if name not in self._runs:
                self._runs[name] = Watched(self._reader(name), f"run {name}", self._limits)
            watched = self._runs[name]
            self._runs.move_to_end(name)
            if len(self._runs) > self._limits.most_remembered:
                self._runs.popitem(last=False)
        seen = watched.now()
        return None if seen.value is not None and seen.value.nothing else seen

    def _reader(self, name: str) -> Callable[[Requests], ReportedRun]:
        growing = GrowingRows()
        remembered: RememberedStore | None = None

        def rows(store: ReadableStore) -> Sequence[Row]:
            with self._one_at_a_time:
                return growing.read(store)

        def read(requests: Requests) -> ReportedRun:
            nonlocal remembered
            if remembered is None:
                store = RunBelow(self._place(requests), name)
                if not holds_a_run(store):  # a foreign folder may be large: it is not listed
                    return ReportedRun(name, None, [], [])
                remembered = RememberedStore(store)
            remembered.look()
            return read_run(remembered, rows)

        return read

    def _read_folders(self, requests: Requests) -> Sequence[str]:
        return [name for name in self._place(requests).folders() if may_be_a_run(name)]

    def _place(self, requests: Requests) -> AskedPlace:
        with requests.one(), self._opening:
            if self._opened is None:
                self._opened = self._open_all()
            return AskedPlace(self._opened, requests)
