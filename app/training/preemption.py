"""Being asked to stop: SIGTERM from an orchestrator, SIGINT from a keyboard, SIGHUP from a terminal
that is gone, SIGUSR1 from a batch system.

Before the first step there is nothing to save, so the signal raises Interrupted at whatever line
is running. It raises again every few seconds until the caller has caught it and says so: an
exception can get lost in a finalizer, or be held up by a library that waits for a child process.
After `defer` the signal only sets a flag, which the training loop reads after each micro-batch. A
second SIGTERM changes nothing.
"""

import logging
import math
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from app.console import redacted
from app.errors import EXIT_INTERRUPTED, AppError, Preempted

log = logging.getLogger(__name__)

STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1})
_POLL_SECONDS = 0.05
_PATIENCE_SECONDS = 60.0  # for each part of closing, as long as nobody asks to stop
_CLOSING_SECONDS = 3.0  # the end of a grace period, kept for closing; at most a quarter of it
_AGAIN_SECONDS = 4.0  # so that it raises twice more within Docker's usual grace of 10 s

NOTHING_TO_SAVE = (
    "stopped before this attempt finished a step: nothing new to save; start again to continue"
)


class Interrupted(BaseException):
    """Raised by a signal, at any line.

    Like KeyboardInterrupt it is no Exception, so that no library swallows it, and none of our own
    handlers takes it for a damaged file.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number  # of the signal


class StopRequest:
    """Whether this process is asked to stop, and since when by the clock `now`, in seconds."""

    def __init__(
        self, again_seconds: float = _AGAIN_SECONDS, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.now = now
        self.requested_at: float | None = None
        self._deferred = False
        self._unheard = False
        self._number = 0  # the signal that was the request
        self._again_seconds = again_seconds

    def install(self) -> None:
        """Take over these signals. Only the main thread may call this."""
        for number in STOP_SIGNALS - {signal.SIGHUP}:
            signal.signal(number, self._on_signal)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup asks to go on without
            signal.signal(signal.SIGHUP, self._on_signal)

    def taken(self) -> None:
        """The caller has caught the Interrupted, if there was one: it is not raised again."""
        if self._unheard:
            self._unheard = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def defer(self) -> None:
        """From here on a signal only sets `requested`, which the caller has to look at.

        Installs the handlers again, because Lightning puts its own around them, which turn
        SIGTERM into an exit with status 0. Raises Preempted if there was a request already.
        """
        self._deferred = True
        self.taken()
        self.install()
        self.raise_if_requested()

    def follow(self) -> None:
        """Another process of the run was asked to stop: this one is too, from now on."""
        if not self.requested:
            self.requested_at = self.now()

    @property
    def deferred(self) -> bool:
        """Whether the first step is done."""
        return self._deferred

    @property
    def requested(self) -> bool:
        return self.requested_at is not None

    def seconds_since(self) -> float:
        return 0.0 if self.requested_at is None else self.now() - self.requested_at

    def raise_if_requested(self) -> None:
        if self.requested:
            raise Preempted(NOTHING_TO_SAVE)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again = self.requested
        if not again:
            self.requested_at = self.now()
        if not self._deferred and not again:
            self._unheard, self._number = True, number
            signal.signal(signal.SIGALRM, self._on_alarm)
            signal.setitimer(signal.ITIMER_REAL, self._again_seconds, self._again_seconds)
            raise Interrupted(number)
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        if self._unheard:
            raise Interrupted(self._number)


class GracePeriod:
    """What can still be done before SIGKILL, which follows `seconds` after a request to stop.

    Saving may use all of it but the last 3 s, or the last quarter of a short one. Of that rest, one
    third is for the record of the end, one for giving the lease back, and one for the process to
    exit. As long as nobody asks to stop, everything fits.
    """

    def __init__(
        self, stop: StopRequest, seconds: float, poll_seconds: float = _POLL_SECONDS
    ) -> None:
        """Work is looked at every `poll_seconds`, to see whether it is over or too late."""
        self.seconds, self._poll_seconds = seconds, poll_seconds
        self._stop, self._third = stop, min(_CLOSING_SECONDS, seconds / 4) / 3

    def fits(self, seconds: float) -> bool:
        """Whether work that takes so many seconds would be over when closing has to begin."""
        return not self._stop.requested or seconds < self._left(thirds=3)

    def record_end(self, work: Callable[[], object]) -> None:
        self._bound("record of the end", work, thirds=2)

    def give_lease_back(self, work: Callable[[], None]) -> None:
        self._bound("end of the lease", work, thirds=1)

    def _left(self, thirds: int) -> float:
        """Seconds until only so many thirds of the time for closing are left."""
        if not self._stop.requested:
            return math.inf
        return self.seconds - thirds * self._third - self._stop.seconds_since()

    def _bound(self, what: str, work: Callable[[], object], thirds: int) -> None:
        """Wait for `work` as long as so many thirds are left, and for one third at least.

        If `work` is not over by then, it goes on in its thread and ends with the process: a store
        that went silent may not answer for minutes, and SIGKILL would come before it does.
        """
        started = self._stop.now()
        thread = threading.Thread(target=work, name="closing", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(timeout=self._poll_seconds)
            taken = self._stop.now() - started
            late = taken > _PATIENCE_SECONDS or self._left(thirds) <= 0
            if late and taken >= self._third and thread.is_alive():
                log.warning("the %s did not reach the store in time", what)
                return


def ended_by(error: BaseException) -> str:
    """How an attempt that this error ended says so in its record."""
    if isinstance(error, Interrupted):
        return f"exit {Preempted.exit_code}: {NOTHING_TO_SAVE}"
    if isinstance(error, AppError):
        return f"exit {error.exit_code}: {redacted(str(error))}"
    if isinstance(error, KeyboardInterrupt):
        return f"exit {EXIT_INTERRUPTED}: interrupted twice"
    return f"{type(error).__name__}: {redacted(str(error))}"
