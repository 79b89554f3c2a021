"""Being asked to stop: SIGTERM from an orchestrator, SIGINT from a keyboard.

Until training starts there is nothing to save, and the signal raises Interrupted where
it strikes, and again every few seconds until somebody takes it: an exception can get lost
in a finalizer, or wait in a library's clean-up for a child that never ends. From `defer`
on the signal only sets a flag, which the loop reads at its next boundary; a second SIGTERM
changes nothing.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from app.errors import Preempted

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
_PATIENCE_SECONDS = 60.0  # for work that is bounded, while nobody asks to stop
_LEAST_SECONDS = 1.0
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
    """Whether, and since when, this process is asked to stop."""

    def __init__(self, again_seconds: float = _AGAIN_SECONDS) -> None:
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
        return 0.0 if self.requested_at is None else time.monotonic() - self.requested_at

    def raise_if_requested(self) -> None:
        if self.requested:
            raise Preempted(NOTHING_TO_SAVE)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again = self.requested
        if not again:
            self.requested_at = time.monotonic()
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

    Before anybody asks to stop, everything fits.
    """

    def __init__(self, stop: StopRequest, seconds: float) -> None:
        self.seconds = seconds
        self._stop = stop

    def fits(self, seconds: float) -> bool:
        return not self._stop.requested or seconds < self.seconds - self._stop.seconds_since()

    def bound(self, what: str, work: Callable[[], None], spare: float) -> None:
        """Do `work`, in what is left of the period less `spare` seconds.

        What is not over by then goes on behind the caller, and ends with the process: a store
        that went silent answers nothing for minutes, and who waits for it is killed.
        """
        started = time.monotonic()
        thread = threading.Thread(target=work, name="bounded", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(timeout=_POLL_SECONDS)
            taken = time.monotonic() - started
            over = not self.fits(spare) if self._stop.requested else taken > _PATIENCE_SECONDS
            if over and taken > _LEAST_SECONDS and thread.is_alive():
                log.warning("the %s did not reach the store in time", what)
                return
