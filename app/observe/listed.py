"""The list of runs: a few small objects of each say how it is."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from app.errors import AccessDenied, AppError, Damaged, IncompatibleRun, NotFound, Unserved
from app.observe.activity import Activity, activity_of
from app.observe.answers import AskedPlace
from app.observe.markup import seconds_of
from app.observe.remembered import RunBelow
from app.observe.reported_run import ReportedRun
from app.run.checkpoints import read_latest
from app.run.journal import AttemptRecord, read_attempts
from app.run.layout import (
    ATTEMPTS,
    LATEST,
    LEASE,
    RECORD,
    WAITING,
    AttemptName,
    CheckpointName,
    file_of,
)
from app.run.lease import LeaseRecord, read_lease
from app.run.waiting import Waiting, read_waiting
from app.stores.contract import ReadableStore, is_key

_AT_ONCE = 8  # runs that are read at the same time

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunLine:
    """A run in the list of runs. `step` is that of its newest checkpoint, `at` when it last showed
    a sign of life, in Unix seconds."""

    name: str
    activity: Activity
    step: int | None
    at: float = 0.0


@dataclass(frozen=True)
class _Rest:
    """What is read of a run beside its lease and what waits for it, and the etag of that lease:
    where nobody has the run, nobody changes the rest without taking it."""

    lease_etag: str
    step: int | None
    ended: Sequence[AttemptRecord]


def may_be_a_run(folder: str) -> bool:
    """Whether a run can have this name: `_tokens` is none."""
    return is_key(folder) and folder[0].isalnum()


def holds_a_run(store: ReadableStore) -> bool:
    """Whether a run has left one of the objects that each has. Raises the store's errors."""
    for key in (LEASE, RECORD, WAITING, LATEST):
        try:
            store.get(key)
        except NotFound:
            continue
        except (Damaged, Unserved):
            pass  # it is there, which was the question
        return True
    return False


class RunList:
    """All runs, as often as somebody asks. Not for several threads at once."""

    def __init__(self) -> None:
        self._rest: dict[str, _Rest] = {}

    def read(self, place: AskedPlace) -> Sequence[RunLine]:
        """The newest first, and before them those that cannot be read.

        Two small objects of each run are read, and of one that is held, or was since the last
        time, up to three more. Raises the store's errors.
        """
        names = [name for name in place.folders() if may_be_a_run(name)]
        self._rest = {name: rest for name, rest in self._rest.items() if name in set(names)}
        with ThreadPoolExecutor(_AT_ONCE, "read-run") as pool:
            lines = list(pool.map(lambda name: self._line(RunBelow(place, name), name), names))
        found = [line for line in lines if line is not None]
        return sorted(found, key=lambda line: (-line.at, line.name))

    def _line(self, store: ReadableStore, name: str) -> RunLine | None:
        """None for a folder that is no run. One run that cannot be read hides no other."""
        try:
            return self._read(store, name)
        except (Damaged, IncompatibleRun, Unserved, AccessDenied) as error:
            problem = str(error)
        except AppError:
            raise  # the store as a whole
        except Exception:  # a bug of the page, at what this run holds
            log.exception("run %s was not read", name)
            problem = "it cannot be read: a bug of this page, whose log has more"
        return RunLine(name, Activity("failed", problem, ()), None, at=float("inf"))

    def _read(self, store: ReadableStore, name: str) -> RunLine | None:
        lease, waiting = read_lease(store), read_waiting(store)
        if lease is None and waiting is None and not holds_a_run(store):
            return None
        held, etag = lease or (None, "")
        rest = self._rest.get(name)
        if rest is None or not etag or rest.lease_etag != etag:
            rest = _rest_of(store, held, etag)
        told = ReportedRun(name, None, [], rest.ended, lease=held, waiting=waiting)
        if not told.alive:  # a live holder commits without a new lease
            self._rest[name] = rest
        return RunLine(name, activity_of(told), rest.step, _newest_sign(held, waiting, rest.ended))


def _rest_of(store: ReadableStore, held: LeaseRecord | None, etag: str) -> _Rest:
    latest = CheckpointName.parse(read_latest(store) or "")
    ended = _newest_attempt(store) if held is None or held.released else []
    return _Rest(etag, latest.step if latest else None, ended)


def _newest_attempt(store: ReadableStore) -> list[AttemptRecord]:
    """The record of the newest attempt, which says why it ended; none where there is none."""
    found = (AttemptName.parse(file_of(info.key)) for info in store.list(ATTEMPTS))
    newest = max((name for name in found if name is not None), default=None, key=lambda n: n.epoch)
    return read_attempts(store, [newest] if newest else [])


def _newest_sign(
    lease: LeaseRecord | None, waiting: Waiting | None, attempts: Sequence[AttemptRecord]
) -> float:
    signs = [seconds_of(attempt.started_at) or 0.0 for attempt in attempts]
    if lease is not None:
        signs.append(lease.renewed_at)
    if waiting is not None:
        signs.append(waiting.at)
    return max(signs, default=0.0)
