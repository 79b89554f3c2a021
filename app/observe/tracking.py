"""The run in trackers of others: W&B and MLflow, each told by a thread of its own.

The rows in the store are the truth, and what a tracker lacks is sent again from there. So nothing
here has to be certain, nothing is waited for, and no failure ends a training:

- Each attempt asks a tracker which steps it has, and sends the others. A step is never sent twice,
  whichever attempt made it.
- A server that is away is asked again, at longer and longer pauses. Meanwhile rows wait, and where
  it does not come back, the next attempt sends them, or `python -m app run track`.
- One that refuses, as for a wrong key, is left alone until the next attempt.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, Protocol

from app.console import counted, redacted
from app.errors import AppError, Unavailable
from app.failures import first_line
from app.observe.rows import Row
from app.printable import printable

log = logging.getLogger(__name__)

Ending = Literal["finished", "preempted", "failed"]
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class CheckpointLink:
    """A committed checkpoint: where it lies, and the SHA-256 (hex) of its model.safetensors."""

    step: int
    uri: str
    sha256: str


@dataclass(frozen=True)
class Measured:
    """Numbers about the weights of `step` that no row has, as of an evaluation, by name.

    `time` is when they were measured, in Unix seconds.
    """

    step: int
    time: float
    values: Mapping[str, float]


class Service(Protocol):
    """One tracker. All calls come from one thread, and may take as long as they like.

    Each raises Unavailable where the same call may succeed later, and any other error where it
    will not in this attempt.
    """

    name: str  # as LOGGERS writes it

    def connect(self) -> Container[int]:
        """Find the run there, or begin it. Returns the steps whose rows it has."""
        ...

    @property
    def place(self) -> str:
        """Where people find the run, once connected, without secrets."""
        ...

    def send(self, rows: Sequence[Row]) -> None:
        """Steps go up."""
        ...

    def link(self, checkpoint: CheckpointLink) -> None: ...

    def measured(self, result: Measured) -> None: ...

    def end(self, how: Ending) -> None: ...


@dataclass(frozen=True)
class Limits:
    """Times in seconds. Rows of one `interval` go together, at most `batch` of them."""

    interval: float = 1.0
    batch: int = 80
    first_pause: float = 1.0
    longest_pause: float = 60.0
    most_rows: int = 100_000  # that wait; beyond it every second one is left out


def values_of(row: Row) -> dict[str, float]:
    """The numbers of a row as trackers show them: all but its step and time, which they know."""
    found = {field.name: getattr(row, field.name) for field in fields(Row)}
    return {
        name: value
        for name, value in found.items()
        if value is not None and name not in ("step", "time")
    }


class Sender:
    """Tells one tracker, on a thread of its own, what it does not know yet."""

    def __init__(
        self,
        service: Service,
        earlier: Sequence[Row] = (),
        limits: Limits | None = None,
        still_ours: Callable[[], bool] = lambda: True,
    ) -> None:
        """`earlier` are the rows of the run so far. Nothing more is sent once the run is not
        `still_ours`: another process tells the tracker then."""
        self._service, self._limits, self._still_ours = service, limits or Limits(), still_ours
        self._rows, self._sending = deque(earlier), list[Row]()
        self._present: Container[int] = ()  # steps that the tracker had when it was asked
        self._link: CheckpointLink | None = None
        self._measured: list[Measured] = []
        self._ending: Ending | None = None
        self._over = False
        self._away = False
        self._pause = self._limits.first_pause
        self._changed = threading.Condition()
        self._thread = threading.Thread(
            target=self._run, name=f"tracker-{service.name}", daemon=True
        )
        self._thread.start()

    def add(self, row: Row) -> None:
        with self._changed:
            if not self._over:
                self._rows.append(row)
                if len(self._rows) > self._limits.most_rows:
                    self._rows = deque([*self._rows][::-2][::-1])
                self._changed.notify_all()

    def link(self, checkpoint: CheckpointLink) -> None:
        with self._changed:
            self._link = checkpoint
            self._changed.notify_all()

    def measured(self, result: Measured) -> None:
        with self._changed:
            self._measured.append(result)
            self._changed.notify_all()

    def close(self, how: Ending) -> None:
        """Send what is left, once, and end. Does not wait."""
        with self._changed:
            self._ending = how
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, for which it has so many seconds more."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def left(self) -> str:
        """What was not sent, in words; "" if all was."""
        with self._changed:
            rows = len(self._rows) + len(self._sending)
        return counted(rows, "row") if rows else ""

    @property
    def name(self) -> str:
        return self._service.name

    def _run(self) -> None:
        while True:
            last = self._ending is not None
            try:
                self._work()
                return
            except Unavailable as error:
                if not self._away:
                    log.warning("%s does not answer, and training goes on: %s", *self._told(error))
                self._away = True
            except Exception as error:  # noqa: BLE001 - whatever a tracker's library raises
                log.warning(
                    "%s gets nothing more from this attempt, and training goes on: %s",
                    *self._told(error),
                )
                self._over = True
                return
            if last:
                return
            with self._changed:
                self._changed.wait_for(lambda: self._ending is not None, timeout=self._pause)
            self._pause = min(self._limits.longest_pause, 2 * self._pause)

    def _told(self, error: Exception) -> tuple[str, str]:
        what = first_line(error) if isinstance(error, AppError) else f"{error!r}"
        return self.name, printable(redacted(what))[:500]

    def _work(self) -> None:
        """Send until everything is sent and the end has come."""
        self._present = self._service.connect()
        with self._changed:
            self._rows.extendleft(reversed(self._sending))
            self._sending = []
        log.info("%s: %s", self.name, printable(redacted(self._service.place)))
        while self._take():
            if not self._still_ours():
                return
            self._send()
        self._service.end(self._ending or "failed")

    def _take(self) -> bool:
        """Wait for something to send. False when nothing more will come."""
        with self._changed:
            while True:
                self._changed.wait_for(self._has_work_or_ends)
                if self._ending is None:
                    self._changed.wait_for(
                        lambda: self._ending is not None, timeout=self._limits.interval
                    )
                while self._rows and len(self._sending) < self._limits.batch:
                    # Also one that was made just now: a step that is replayed may be there.
                    if (row := self._rows.popleft()).step not in self._present:
                        self._sending.append(row)
                if self._sending or self._link or self._measured:
                    return True
                if self._ending is not None:
                    return False

    def _has_work_or_ends(self) -> bool:
        waits = self._rows or self._link or self._measured
        return bool(waits) or self._ending is not None

    def _send(self) -> None:
        if self._sending:
            self._service.send(self._sending)
            with self._changed:
                self._sending = []
        if (link := self._link) is not None:
            self._service.link(link)
            with self._changed:
                if self._link is link:
                    self._link = None
        if self._measured:
            self._service.measured(self._measured[0])
            with self._changed:
                del self._measured[0]
        if self._away:
            log.info("%s answers again", self.name)
        self._away, self._pause = False, self._limits.first_pause


class Tracking:
    """All trackers of a run that are told over a network. There may be none."""

    def __init__(self, senders: Sequence[Sender] = ()) -> None:
        self._senders = senders

    def add(self, row: Row) -> None:
        for sender in self._senders:
            sender.add(row)

    def link(self, checkpoint: CheckpointLink) -> None:
        for sender in self._senders:
            sender.link(checkpoint)

    def measured(self, result: Measured) -> None:
        for sender in self._senders:
            sender.measured(result)

    def close(
        self,
        how: Ending,
        patience: float = 10.0,
        fits: Callable[[float], bool] = lambda seconds: True,
    ) -> bool:
        """Let them end, for at most `patience` seconds and as long as that `fits`.

        False, with a line in the log, if something was not sent.
        """
        for sender in self._senders:
            sender.close(how)
        began = time.monotonic()
        for sender in self._senders:
            while not sender.wait(_POLL_SECONDS):
                if time.monotonic() - began > patience or not fits(0):
                    break
        behind = [sender for sender in self._senders if sender.left or not sender.wait(0)]
        for sender in behind:
            log.warning(
                "%s is behind%s: the next attempt tells it the rest, or `python -m app run track`",
                sender.name,
                f" by {sender.left}" if sender.left else "",
            )
        return not behind
