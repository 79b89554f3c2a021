"""Being asked to stop: SIGTERM from an orchestrator, SIGINT from a keyboard.

Until training starts there is nothing to save, and the signal raises Interrupted where
it strikes, and again every few seconds until somebody takes it: an exception can get lost
in a finalizer, or wait in a library's clean-up for a child that never ends. From `defer`
on the signal only sets a flag, which the loop reads at its next boundary; a second SIGTERM
changes nothing.
"""

import logging
import math
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from app.errors import Preempted

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
_PATIENCE_SECONDS = 60.0  # for each part of closing, while nobody asks to stop
_CLOSING_SECONDS = 3.0  # of a grace period, and at most a quarter of it
_AGAIN_SECONDS = 4.0  # twice within Docker's usual grace of 10 s

NOTHING_TO_SAVE = (
    "stopped before this attempt finished a step: nothing new to save; start again to continue"
)


class Interrupted(BaseException):
    """Raised by a signal, in the middle of anything.

    Not an Exception, as KeyboardInterrupt is none: no library may swallow it, and none of
    our own handlers may take it for a damaged file.
    """


class StopRequest:
    """Whether this process is asked to stop, and since when by the clock `now`, in seconds."""

    def __init__(
        self, again_seconds: float = _AGAIN_SECONDS, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.now = now
        self.requested_at: float | None = None
        self._deferred = False
        self._unheard = False
        self._again_seconds = again_seconds

    def install(self) -> None:
        """Take over both signals. Only the main thread may call this."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def taken(self) -> None:
        """An Interrupted has reached who handles it, if there was one: no other follows."""
        if self._unheard:
            self._unheard = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def defer(self) -> None:
        """From here on the caller looks at `requested` and ends in order.

        Installs the handlers again: Lightning puts its own around them, which turn
        SIGTERM into an exit with status 0.
        """
        self._deferred = True
        self.taken()
        self.install()
        self.raise_if_requested()

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
            self._unheard = True
            signal.signal(signal.SIGALRM, self._on_alarm)
            signal.setitimer(signal.ITIMER_REAL, self._again_seconds, self._again_seconds)
            raise Interrupted
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        if self._unheard:
            raise Interrupted


class GracePeriod:
    """What can still be done before SIGKILL, which follows `seconds` after a request to stop.

    Saving has all of it but the last 3 s, or the last quarter of a short one: a third of those
    is for the record of the end, one for giving the lease back, and one for the process to go.
    Before anybody asks to stop, everything fits.
    """

    def __init__(
        self, stop: StopRequest, seconds: float, poll_seconds: float = _POLL_SECONDS
    ) -> None:
        """Work is looked at every `poll_seconds`, to see whether it is over or too late."""
        self.seconds, self._poll_seconds = seconds, poll_seconds
        self._stop, self._third = stop, min(_CLOSING_SECONDS, seconds / 4) / 3

    def fits(self, seconds: float) -> bool:
        """Whether work of so many seconds is over when it is time to close."""
        return not self._stop.requested or seconds < self._left(thirds=3)

    def record_end(self, work: Callable[[], None]) -> None:
        self._bound("record of the end", work, thirds=2)

    def give_lease_back(self, work: Callable[[], None]) -> None:
        self._bound("end of the lease", work, thirds=1)

    def _left(self, thirds: int) -> float:
        """Seconds, less so many thirds of what is kept for closing."""
        if not self._stop.requested:
            return math.inf
        return self.seconds - thirds * self._third - self._stop.seconds_since()

    def _bound(self, what: str, work: Callable[[], None], thirds: int) -> None:
        """Do `work` as long as so many thirds are left, and for one third at least.

        What is not over by then goes on behind the caller, and ends with the process: a store
        that went silent answers nothing for minutes, and who waits for it is killed.
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
