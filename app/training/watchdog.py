"""Ends the process where nothing else in it can: a thread that needs nothing of the training loop.

The loop may hang in a driver, in a read from a dead volume, for a process that loads data, or
with a lock that is never given back. Then the process would hold the GPU for ever, and neither a
restart policy nor a person would learn of it.
"""

import contextlib
import faulthandler
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from app.console import duration
from app.errors import Preempted, Unavailable
from app.heartbeat import LONGEST_SILENCE, allowed_silence, beats_so_far
from app.process import leave, log_bytes
from app.settings.variables import CheckpointSettings
from app.training.preemption import STOP_SIGNALS, StopRequest

log = logging.getLogger(__name__)

_OVER = b"\0"  # no signal has this number
_LAST_WORDS_SECONDS = 5.0  # the log may be what hangs
_SHORTEST_GRACE = 5.0  # seconds; a shorter one is no time in which a healthy process ends
_LAST_RESORT = 16  # times HANG_SECONDS, four times what the first step may take


@dataclass(frozen=True)
class Verdict:
    """The process has to end now, with this code."""

    code: int
    why: str


class Watch:
    """How long there has been no sign of life, and how long ago the process was asked to stop."""

    def __init__(self, settings: CheckpointSettings) -> None:
        self._hang, self._grace = settings.hang_seconds, settings.grace_seconds
        self._beats, self._silent, self._since_asked = -1, 0.0, 0.0
        self._hung_when_asked: bool | None = None

    def look(
        self,
        seconds: float,
        beats: int,
        *,
        asked: bool,
        stepped: bool,
        allowed: float = LONGEST_SILENCE,
    ) -> Verdict | None:
        """`seconds` have passed since the last look. `beats` counts the signs of life until now,
        `stepped` says that the first step is done, `allowed` is the silence that `health` allows
        at present, in seconds.

        Where that is over when the request to stop comes, `health` may be the reason for the
        request. A hang that ends with 143 would never be counted, and come again for ever.
        """
        self._silent = self._silent + seconds if beats == self._beats else 0.0
        if asked and self._hung_when_asked is None:
            self._hung_when_asked = self._silent > allowed
        self._since_asked += seconds if asked else 0.0
        self._beats = beats
        if self._since_asked >= max(self._grace, _SHORTEST_GRACE):
            if self._hung_when_asked and self._silent >= self._since_asked:
                return Verdict(
                    Unavailable.exit_code,
                    f"it hangs: no micro-step, save or data for {duration(self._silent)}, of which "
                    f"{duration(allowed)} are allowed, and GRACE_SECONDS={self._grace:g} after it "
                    "was asked to stop it still does not end. Where each thread is stands above; "
                    "start again to go on from the newest checkpoint",
                )
            return Verdict(
                Preempted.exit_code,
                f"asked to stop, and something does not end: over after GRACE_SECONDS="
                f"{self._grace:g}, whatever is in flight",
            )
        # The first step may be compiled for minutes, and what comes before it may be downloaded.
        if self._silent >= (self._hang if stepped else 4 * self._hang):
            return Verdict(
                Unavailable.exit_code,
                f"it hangs: no micro-step, save or data for {duration(self._silent)} "
                f"(HANG_SECONDS={self._hang:g}). Where each thread is stands above; start again "
                "to go on from the newest checkpoint, or raise HANG_SECONDS if this was work",
            )
        return None


@contextlib.contextmanager
def watched_for_hangs(
    settings: CheckpointSettings,
    stop: StopRequest,
    poll_seconds: float = 1.0,
    end: Callable[[int], object] = leave,
    last_resort_seconds: float | None = None,
) -> Iterator[None]:
    """In this block the process ends by itself when it hangs (75), or when GRACE_SECONDS are over
    (143, or 75 where it hung before it was asked to stop). Only the main thread may enter it.

    `end` is called with the exit code, from another thread. Where that thread has not run for
    `last_resort_seconds`, 16 times HANG_SECONDS by default, the process ends with 1.
    """
    if last_resort_seconds is None:
        last_resort_seconds = _LAST_RESORT * settings.hang_seconds
    # What Python calls on a signal waits for the main thread, which may hang. This pipe does not.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(
        target=_watch,
        args=(reader, Watch(settings), stop, poll_seconds, end, last_resort_seconds),
        name="watchdog",
        daemon=True,
    )
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writer, _OVER)  # closing it says nothing while a child has a copy
        thread.join()
        faulthandler.cancel_dump_traceback_later()
        os.close(writer)
        os.close(reader)


def _watch(
    reader: int,
    watch: Watch,
    stop: StopRequest,
    poll_seconds: float,
    end: Callable[[int], object],
    last_resort_seconds: float,
) -> None:
    """Until `reader` gives _OVER."""
    asked, now = False, time.monotonic()
    while True:
        _put_off_last_resort(last_resort_seconds)
        numbers = b""
        if select.select([reader], [], [], poll_seconds)[0]:
            numbers = os.read(reader, 512)
        if _OVER in numbers:
            return
        asked = asked or stop.requested or not STOP_SIGNALS.isdisjoint(numbers)
        before, now = now, time.monotonic()
        # A process that was paused (SIGSTOP) did not hang meanwhile.
        passed = min(now - before, 2 * poll_seconds)
        verdict = watch.look(
            passed,
            beats_so_far(),
            asked=asked,
            stepped=stop.deferred,
            allowed=allowed_silence(),
        )
        if verdict is not None:
            try:
                _last_words(verdict)
            finally:
                end(verdict.code)
            return


def _put_off_last_resort(seconds: float) -> None:
    """Let a thread that is not Python's end the process after that time, unless put off again.

    Code that hangs with the interpreter's lock stops every thread of Python, the watchdog too.
    What remains: the code of this end is always 1, its stacks wait for a log that nobody reads,
    and a process that was paused (SIGSTOP) for longer is ended when it comes back. So the time is
    a long one.
    """
    with contextlib.suppress(RuntimeError):  # no thread can be made now: the next look tries again
        faulthandler.dump_traceback_later(seconds, exit=True, file=2)


def _last_words(verdict: Verdict) -> None:
    """Say where each thread is, and why it ends. The log has some seconds for it."""

    def say() -> None:
        log_bytes(_stacks())  # first: a thread that hangs may have the lock of the log's handler
        log.error("%s (exit %d)", verdict.why, verdict.code)

    thread = threading.Thread(target=say, name="last words", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # no thread can be made, and what must not wait can say this
        log_bytes(_stacks() + f"{verdict.why} (exit {verdict.code}; {error})\n".encode())
        return
    thread.join(_LAST_WORDS_SECONDS)


def _stacks() -> bytes:
    """Where each thread is, as far as a pipe has room for it: 64 kB.

    faulthandler keeps the interpreter's lock while it writes, so it must not wait for the log.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    faulthandler.dump_traceback(writer, all_threads=True)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        return pipe.read()
