"""What the store knows of a run that a report shows. Numbers that cannot be meant are left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from app.observe.rows import Row, stored_rows
from app.run.journal import AttemptRecord, read_attempts
from app.run.view import read_view
from app.state.identity import RunRecord
from app.stores.contract import Store

_NEWEST_ATTEMPTS = 200
_LONGEST_ATTEMPT = 1e9  # seconds
_LARGEST = 2**53  # a larger number is damage, and would squeeze the curves into a corner


@dataclass(frozen=True)
class ReportedRun:
    """What the store knows of a run. `attempts` are the newest ones, oldest first."""

    name: str
    record: RunRecord | None
    rows: Sequence[Row]
    attempts: Sequence[AttemptRecord]

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
    def spans(self) -> list[tuple[float, float, AttemptRecord]]:
        """(start, end, attempt) in Unix seconds, by start, where the record says plausible ones."""
        spans = []
        for attempt in self.attempts:
            try:
                moment = datetime.fromisoformat(attempt.started_at)
            except ValueError:
                continue
            start = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
            if start >= 0 and 0 <= attempt.seconds < _LONGEST_ATTEMPT:
                spans.append((start, start + attempt.seconds, attempt))
        return sorted(spans, key=lambda span: span[0])


def read_run(store: Store) -> ReportedRun:
    """Raises Damaged for an unreadable run.json, and the store's errors."""
    view = read_view(store)
    return ReportedRun(
        name=store.uri.rsplit("/", 1)[-1],
        record=view.record.record if view.record else None,
        rows=[row for row in stored_rows(store) if _plausible(row.step, row.tokens, row.time)],
        attempts=[
            attempt
            for attempt in read_attempts(store, view.newest_attempts(_NEWEST_ATTEMPTS))
            if _plausible(*(v for v in attempt.model_dump().values() if isinstance(v, int | float)))
        ],
    )


def _plausible(*values: float) -> bool:
    return all(abs(value) < _LARGEST for value in values)  # False for a NaN too
