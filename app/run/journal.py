"""The attempts of a run, a file for each: attempts/e000003-from-0000000040.json.

An attempt writes its file under the lease, before it commits anything; again with every
checkpoint; and when it ends. One that was killed leaves the words of its last checkpoint.

The name alone is a fence. A process that was paused between its last look at the lease
and the write can still write a manifest after its successor started. Every later attempt
says in the name of its file from which step it went on, so that such a checkpoint (of an
earlier epoch, beyond that step) is known to be late, and is not part of the run.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from app.console import counted, duration
from app.errors import AppError, Damaged, NotFound
from app.failures import first_line
from app.stores.contract import Data, Store

ATTEMPTS = "attempts"

_NAME = re.compile(r"e(\d{6})-from-(\d{10})\.json")

log = logging.getLogger(__name__)


class AttemptRecord(BaseModel):
    """What an attempt says of itself. Times in seconds; steps are finished optimizer steps.

    `steps_lost` is what the attempt before had made beyond the step this one started
    from, as far as anybody wrote it down. `longest_upload_lag` is the time from a
    snapshot to its commit. `saves` were asked for, `commits` are in the store, and
    `failed_saves` are tries that the store did not take. `ended` is None in a record
    that nobody finished.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    epoch: int
    holder: str
    trainer: str
    started_at: str
    resumed_from: str | None
    start_step: int
    steps_lost: int = 0
    step: int
    seconds: float = 0.0
    seconds_to_first_step: float | None = None
    saves: int = 0
    commits: int = 0
    failed_saves: int = 0
    stall_seconds: float = 0.0
    longest_upload_lag: float = 0.0
    ended: str | None = None

    @property
    def key(self) -> str:
        return f"{ATTEMPTS}/e{self.epoch:06d}-from-{self.start_step:010d}.json"

    @property
    def steps(self) -> int:
        return self.step - self.start_step


@dataclass(frozen=True)
class Fences:
    """From which step each attempt went on, by its epoch."""

    starts: Sequence[tuple[int, int]]

    def late(self, step: int, epoch: int) -> bool:
        """Whether a checkpoint was committed by a process that had lost the run."""
        return any(epoch < later and step > start for later, start in self.starts)


def fences(store: Store) -> Fences:
    """One listing: the names say it all."""
    matches = (_NAME.fullmatch(info.key.rsplit("/", 1)[1]) for info in store.list(f"{ATTEMPTS}/"))
    return Fences([(int(match[1]), int(match[2])) for match in matches if match])


def read_attempts(store: Store, newest: int) -> list[AttemptRecord]:
    """The last `newest` attempts, oldest first; one that cannot be read is left out and said."""
    records = []
    keys = [info.key for info in store.list(f"{ATTEMPTS}/")]
    for key in keys[max(0, len(keys) - newest) :]:
        try:
            content, _ = store.get(key)
            records.append(AttemptRecord.model_validate_json(content))
        except NotFound:
            continue
        except (Damaged, ValidationError):
            log.warning("%s/%s cannot be read", store.uri, key)
    return records


class AttemptJournal:
    """The record of the running attempt; the saver's thread reads it too."""

    def __init__(self, store: Store, record: AttemptRecord) -> None:
        self._store, self._record = store, record
        self._lock = threading.Lock()

    @property
    def record(self) -> AttemptRecord:
        with self._lock:
            return self._record

    def begin(self) -> None:
        """Put the fence up. Raises the store's errors."""
        self._store.put(self._record.key, [self._content()])

    def note(self, **values: float | str | None) -> None:
        """Set fields of the record."""
        with self._lock:
            self._record = self._record.model_copy(update=values)

    def saved(self, stall_seconds: float) -> None:
        with self._lock:
            self._record = self._record.model_copy(
                update={
                    "saves": self._record.saves + 1,
                    "stall_seconds": self._record.stall_seconds + stall_seconds,
                }
            )

    def committed(self, upload_lag: float) -> None:
        record = self.record
        self.note(
            commits=record.commits + 1,
            longest_upload_lag=max(upload_lag, record.longest_upload_lag),
        )

    def save_failed(self) -> None:
        self.note(failed_saves=self.record.failed_saves + 1)

    def objects(self) -> dict[str, Data]:
        """What goes into the store with a checkpoint."""
        return {self._record.key: [self._content()]}

    def end(self, why: str) -> bool:
        """The last words. A store that does not take them is no reason to fail: then False.

        Also of a process that has lost the run: its file is its own, by the epoch in the name,
        and nobody decides anything by what it says. But who lost the run may find it removed, or
        begun anew with the same epoch, so only a file of this holder is replaced.
        """
        self.note(ended=why)
        record, content = self.record, self._content()
        try:
            while True:
                stored, etag = self._store.get(record.key)
                if AttemptRecord.model_validate_json(stored).holder != record.holder:
                    reason = f"{record.key} is another process's"
                    break
                if self._store.put_if_match(record.key, content, etag) is not None:
                    return True
        except (AppError, ValidationError) as error:
            reason = first_line(error)
        log.warning("the end of this attempt was not recorded: %s", reason)
        return False

    def _content(self) -> bytes:
        return (self.record.model_dump_json(indent=1) + "\n").encode()


def summary(record: AttemptRecord) -> str:
    """The line that an attempt ends with."""
    line = f"attempt {record.epoch}: {counted(record.steps, 'step')} in {duration(record.seconds)}"
    share = 100 * record.stall_seconds / max(1e-9, record.seconds)
    line += (
        f"; {counted(record.saves, 'save')} held training up for {record.stall_seconds:.2f} s "
        f"({share:.2f} %)"
    )
    if record.commits:
        slowest = "the slowest" if record.commits > 1 else "it"
        line += f", {slowest} was in the store after {record.longest_upload_lag:.1f} s"
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


def seconds_of_this_process() -> float | None:
    """Since the kernel started this process, imports included; None where /proc is missing.

    Field 22 of /proc/self/stat, in ticks since boot: proc(5).
    """
    try:
        stat = Path("/proc/self/stat").read_text("utf-8")
    except FileNotFoundError:
        return None
    ticks = int(stat.rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
