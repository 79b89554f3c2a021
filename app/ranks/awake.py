"""A clock that stands still while the process does: paused by Ctrl-Z, or with its machine."""

import time
from collections.abc import Callable


class AwakeClock:
    """Seconds since it was made, but that of the time between two readings at most `most` count.

    Whoever reads it again and again, more often than that, sees how long it has waited itself. A
    process that comes back from a pause then does not take the pause for the silence of others.
    """

    def __init__(self, most: float, now: Callable[[], float] = time.monotonic) -> None:
        self._most, self._now = most, now
        self._read_at, self._seconds = now(), 0.0

    def __call__(self) -> float:
        before, self._read_at = self._read_at, self._now()
        self._seconds += min(self._read_at - before, self._most)
        return self._seconds
