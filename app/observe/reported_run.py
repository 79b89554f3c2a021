"""What the store knows of a run that a report shows. Numbers that cannot be meant are left out."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from app.console import counted
from app.errors import Damaged, IncompatibleRun, NotFound, Unserved
from app.observe.history import Span, spans_of
from app.observe.rows import Row
from app.observe.samples import Sample, read_samples
from app.observe.thinned import thinned_rows
from app.run.checkpoints import Manifest, read_latest, read_manifest
from app.run.evaluations import Evaluation, evaluations_of
from app.run.journal import AttemptRecord, read_attempts
from app.run.layout import REASON, CheckpointName
from app.run.lease import LeaseRecord, read_lease
from app.run.record import load_record
from app.run.view import CheckpointState, RunView, StoredCheckpoint, read_view
from app.run.waiting import Waiting, read_waiting
from app.state.identity import RunRecord
from app.stores.contract import ReadableStore

T = TypeVar("T")

_NEWEST_ATTEMPTS = 200
_NEWEST_CHECKPOINTS = 20
_LARGEST = 2**53  # a larger number is damage, and would squeeze the curves into a corner
_MOST_REASON = 100_000  # bytes
_MOST_PROBLEMS = 5  # that are told of one kind


@dataclass(frozen=True)
class ReportedCheckpoint:
    """A checkpoint, or what is left of one. `size` in bytes; `created_at` as records write it."""

    name: CheckpointName
    size: int
    state: str
    whole: bool
    train_loss: float | None = None
    created_at: str | None = None


@dataclass(frozen=True)
class ReportedRun:
    """What the store knows of a run. `attempts` are the newest ones, oldest first.

    `checkpoints` are the newest ones, newest first, and so are those in quarantine behind them.
    `evaluations` go up by step, without those of checkpoints that are no part of the run any more.
    `lease` and `waiting` say what goes on at this moment. `read_at` is in Unix seconds. `problems`
    are sentences about what could not be read.
    """

    name: str
    record: RunRecord | None
    rows: Sequence[Row]
    attempts: Sequence[AttemptRecord]
    checkpoints: Sequence[ReportedCheckpoint] = ()
    samples: Sequence[Sample] = ()
    evaluations: Sequence[Evaluation] = ()
    lease: LeaseRecord | None = None
    waiting: Waiting | None = None
    read_at: float = field(default_factory=time.time)
    problems: Sequence[str] = ()

    @property
    def nothing(self) -> bool:
        """Whether the store holds nothing of such a run."""
        held = self.record or self.lease or self.waiting
        return not (held or self.attempts or self.checkpoints or self.problems)

    @property
    def target(self) -> int | None:
        """The step at which the run is finished, if the store says a plausible one."""
        return self.record.target if self.record and _plausible(self.record.target) else None

    @property
    def parameter_count(self) -> int | None:
        """From the shape in the record; None where that is no shape of a model."""
        config = self.record.identity.config if self.record else None
        count = config.parameter_count if config else None
        return count if count and _plausible(count) else None

    @property
    def alive(self) -> bool:
        """Whether the holder of the lease has renewed it when it should have."""
        lease = self.lease
        if lease is None or lease.released:
            return False
        return self.read_at - lease.renewed_at <= lease.ttl

    @cached_property
    def spans(self) -> Sequence[Span]:
        """When each attempt ran, by start, where its record says so."""
        running = self.lease.epoch if self.lease and self.alive else None
        return spans_of(self.attempts, running, self.lease.renewed_at if self.lease else 0.0)


def read_run(
    store: ReadableStore, rows_of: Callable[[ReadableStore], Sequence[Row]] = thinned_rows
) -> ReportedRun:
    """What can be read of the run, and what cannot as `problems`. `rows_of` reads its metrics.

    Raises the store's errors, but those of a single object: Damaged, IncompatibleRun, Unserved.
    """
    problems: list[str] = []
    view = read_view(
        store,
        lambda _: _read(store, load_record, problems),
        lambda _: _read(store, read_latest, problems),
    )
    record, lease = view.record, _read(store, read_lease, problems)
    newest = view.newest_attempts(_NEWEST_ATTEMPTS)
    attempts = read_attempts(store, newest)
    if missing := len(newest) - len(attempts):
        problems.append(f"{counted(missing, 'record')} of attempts cannot be read: see the log")
    rows = _read(store, rows_of, problems) or ()
    return ReportedRun(
        name=store.uri.rsplit("/", 1)[-1],
        record=record.record if record else None,
        rows=[row for row in rows if _plausible(row.step, row.tokens, row.time)],
        attempts=[
            attempt
            for attempt in attempts
            if _plausible(*(v for v in attempt.model_dump().values() if isinstance(v, int | float)))
        ],
        checkpoints=[
            *(
                _checkpoint(store, view, stored)
                for stored in view.checkpoints[:_NEWEST_CHECKPOINTS]
            ),
            *_set_aside(store, view),
        ],
        samples=_read(store, read_samples, problems) or (),
        evaluations=_evaluations(store, view, problems),
        lease=lease[0] if lease else None,
        waiting=_read(store, read_waiting, problems),
        problems=problems,
    )


def _read(
    store: ReadableStore, part: Callable[[ReadableStore], T | None], problems: list[str]
) -> T | None:
    """A part of a run; None where it cannot be read, and the reason is added to `problems`."""
    try:
        return part(store)
    except (Damaged, IncompatibleRun, Unserved) as error:
        problems.append(str(error))
        return None


def _evaluations(store: ReadableStore, view: RunView, problems: list[str]) -> Sequence[Evaluation]:
    read = evaluations_of(store)
    for key, reason in read.damaged[:_MOST_PROBLEMS]:
        problems.append(f"{key} cannot be read: {reason}")
    gone = {*view.quarantined, *map(str, view.late)}
    return [one for one in read.found if one.checkpoint not in gone]


def _checkpoint(
    store: ReadableStore, view: RunView, stored: StoredCheckpoint
) -> ReportedCheckpoint:
    """With what its manifest says, if it has one. Only sizes are compared, no byte is read."""
    name, size = stored.name, stored.size
    state, whole = stored.state.value, stored.committed
    manifest: Manifest | None = None
    if stored.state in (CheckpointState.COMMITTED, CheckpointState.LATE):
        try:
            manifest = read_manifest(store, name)
        except NotFound:
            state, whole = "removed just now", False
        except (Damaged, IncompatibleRun) as error:
            state, whole = f"damaged: {error}", False
        except Unserved as error:
            state, whole = f"damaged: its manifest is not served: {error}", False
    if manifest is None:
        return ReportedCheckpoint(name, size, state, whole)
    for file, entry in manifest.files.items():
        if view.objects.get(name.key(file)) != entry.size:
            state, whole = f"damaged: {file} is missing, or has another size", False
            break
    return ReportedCheckpoint(name, size, state, whole, manifest.train_loss, manifest.created_at)


def _set_aside(store: ReadableStore, view: RunView) -> Iterator[ReportedCheckpoint]:
    """The newest checkpoints in quarantine, each with the reason."""
    names = [name for folder in view.quarantined if (name := CheckpointName.parse(folder))]
    for name in sorted(names, reverse=True)[:_NEWEST_CHECKPOINTS]:
        prefix, reason = name.quarantine_key(), "its reason cannot be read"
        size = sum(n for key, n in view.objects.items() if key.startswith(prefix))
        try:
            told = json.loads(store.get(name.quarantine_key(REASON), _MOST_REASON)[0])
            reason = str(told["reason"])
        except (NotFound, Damaged, Unserved, ValueError, KeyError, TypeError, RecursionError):
            pass
        yield ReportedCheckpoint(name, size, f"quarantined: {reason}", whole=False)


def _plausible(*values: float) -> bool:
    return all(abs(value) < _LARGEST for value in values)  # False for a NaN too
