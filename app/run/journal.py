"""The record of each attempt: attempts/e000003-from-0000000040-e000001.json.

An attempt writes its record before it commits anything, again after every checkpoint, and when it
ends. An attempt that was killed leaves the record that it wrote after its last checkpoint. The
name of the file is a fence: see `app.run.fence`.
"""

import logging
import threading
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from app.console import counted, duration
from app.errors import AppError, Damaged, NotFound, Unserved
from app.failures import first_line
from app.run.layout import HIGHEST_EPOCH, AttemptName, CheckpointName
from app.state.identity import HIGHEST_STEP
from app.stores.contract import Data, ReadableStore, Store
from app.stores.documents import Document, decode_document, encode_document
from app.stores.swap import update

_LONGEST_END = 20_000  # characters

_Text = Annotated[str, Field(max_length=500)]
_Count = Annotated[int, Field(ge=0, le=HIGHEST_STEP)]
_Seconds = Annotated[float, Field(ge=0, le=1e12)]

log = logging.getLogger(__name__)

TARGET_REACHED = "target reached"  # how `ended` begins where an attempt did all it was to do


class AttemptRecord(Document):
    """What an attempt says of itself. Times in seconds; steps are finished optimizer steps.

    `steps_lost` are the steps that the attempt before had made beyond the step this one started
    from, as far as they were written down anywhere. `longest_upload_lag` is the time from a
    snapshot to its commit. `saves` counts the snapshots that were asked for, `commits` those that
    are in the store, and `failed_saves` the tries that the store did not take. `ended` is None in
    the record of an attempt that was killed, or that is still running. `closed` is False from then
    until nothing is left to be done but to exit; None where nobody asked. `additional_steps` is the
    ADDITIONAL_STEPS that it was started with, if no EXTENSION_ID named them, and else 0.
    """

    epoch: int = Field(ge=0, le=HIGHEST_EPOCH)
    holder: _Text
    trainer: _Text
    started_at: _Text
    resumed_from: _Text | None
    start_step: _Count
    additional_steps: _Count = 0
    steps_lost: _Count = 0
    step: _Count
    seconds: _Seconds = 0.0
    seconds_to_first_step: _Seconds | None = None
    saves: _Count = 0
    commits: _Count = 0
    failed_saves: _Count = 0
    stall_seconds: _Seconds = 0.0
    longest_upload_lag: _Seconds = 0.0
    ended: str | None = Field(None, max_length=_LONGEST_END)
    closed: bool | None = None

    @property
    def was_killed(self) -> bool:
        """Whether its process may have been killed before it exited, at its very end included."""
        return self.ended is None or self.closed is False

    @property
    def key(self) -> str:
        resumed = CheckpointName.parse(self.resumed_from or "")
        return AttemptName(self.epoch, self.start_step, resumed.epoch if resumed else None).key

    @property
    def steps(self) -> int:
        return self.step - self.start_step


def read_attempts(store: ReadableStore, names: Sequence[AttemptName]) -> list[AttemptRecord]:
    """Their records, in the same order. Logs and leaves out one that cannot be read."""
    records = []
    for name in names:
        try:
            record = decode_document(store.get(name.key)[0], AttemptRecord, name.key)
            if (record.epoch, record.start_step) != (name.epoch, name.start_step):
                raise Damaged(f"{name.key} is the record of another attempt")
            records.append(record)
        except NotFound:
            continue
        except (Damaged, Unserved) as error:
            log.warning("%s/%s cannot be read: %s", store.uri, name.key, error)
    return records


class AttemptJournal:
    """Keeps the record of the running attempt, in memory and in the store.

    The training loop and the thread of the saver both use it. Each field has one of them as its
    only writer.
    """

    def __init__(self, store: Store, record: AttemptRecord) -> None:
        self._store, self._record = store, record
        self._warned = False  # that the end was not recorded, which is said once
        self._lock = threading.Lock()

    @property
    def record(self) -> AttemptRecord:
        with self._lock:
            return self._record

    def begin(self) -> None:
        """Write the record for the first time, and with its name the fence.

        Raises the store's errors.
        """
        self._store.put(self._record.key, [encode_document(self.record)])

    def note(self, **values: float | str | None) -> None:
        """Set fields of the record."""
        with self._lock:
            self._record = self._record.model_copy(update=values)

    def saved(self, stall_seconds: float) -> None:
        record = self.record
        self.note(saves=record.saves + 1, stall_seconds=record.stall_seconds + stall_seconds)

    def committed(self, upload_lag: float) -> None:
        record = self.record
        self.note(
            commits=record.commits + 1,
            longest_upload_lag=max(upload_lag, record.longest_upload_lag),
        )

    def save_failed(self) -> None:
        self.note(failed_saves=self.record.failed_saves + 1)

    def objects(self) -> dict[str, Data]:
        """What goes into the store after a checkpoint: key → content."""
        return {self._record.key: [encode_document(self.record)]}

    def end(self, why: str) -> bool:
        """Say in the record why the attempt ends. Returns False if the store does not take it.

        A process that has lost the run does this too. The file is its own, since its epoch is in
        the name, and nobody decides anything by what the record says. But its successor may have
        removed the run, or begun it anew with the same epoch. So the record is written only over
        one of the same holder.
        """
        self.note(ended=why[:_LONGEST_END], closed=False)
        return self._rewrite()

    def close(self) -> None:
        """Say in the record that nothing is left to be done but to exit. The last thing written."""
        self.note(closed=True)
        self._rewrite()

    def _rewrite(self) -> bool:
        record = self.record

        def last_words(stored: bytes) -> bytes | None:
            theirs = decode_document(stored, AttemptRecord, record.key)
            return encode_document(record) if theirs.holder == record.holder else None

        try:
            if update(self._store, record.key, last_words):
                return True
            reason = f"{record.key} is another process's"
        except AppError as error:
            reason = first_line(error)
        if not self._warned:
            log.warning("the end of this attempt was not recorded: %s", reason)
        self._warned = True
        return False


def summary(record: AttemptRecord) -> str:
    """The line that an attempt ends with."""
    line = f"attempt {record.epoch}: {counted(record.steps, 'step')} in {duration(record.seconds)}"
    share = 100 * record.stall_seconds / max(1e-9, record.seconds)
    line += (
        f"; {counted(record.saves, 'save')} held training up for {record.stall_seconds:.2f} s "
        f"({share:.2f} %)"
    )
    if record.commits:
        which = "it" if record.saves == 1 else "one" if record.commits == 1 else "the slowest"
        line += f", {which} was in the store after {record.longest_upload_lag:.1f} s"
    if record.failed_saves:
        line += f"; {counted(record.failed_saves, 'try', 'tries')} to save failed"
    return line


def attempt_table(records: Sequence[AttemptRecord]) -> list[str]:
    """Lines for a terminal. Durations in seconds; `lag` is from a snapshot to its commit."""
    columns = ("from", "steps", "lost", "1st step", "saves", "failed", "stall", "lag")
    lines = [f"{'attempt':>7} {'started':<19} {' '.join(f'{c:>8}' for c in columns)}  ended"]
    for record in records:
        first = record.seconds_to_first_step
        cells = (
            str(record.start_step),
            str(record.steps),
            str(record.steps_lost),
            "-" if first is None else f"{first:.1f} s",
            str(record.saves),
            str(record.failed_saves),
            f"{record.stall_seconds:.2f} s",
            f"{record.longest_upload_lag:.1f} s",
        )
        ended = record.ended or "no end recorded: killed, or still running"
        lines.append(
            f"{record.epoch:>7} {record.started_at[:19]:<19} "
            f"{' '.join(f'{cell:>8}' for cell in cells)}  {ended}"
        )
    return lines
