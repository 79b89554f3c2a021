"""A request to stop in a test's own process, and a text that training does not get through."""

import time

from app.training.preemption import StopRequest

LONG_TEXT = "\n".join(f"Line {number} of a text that is long enough." for number in range(20_000))


class QuietStop(StopRequest):
    """A stop request that leaves this process's signals alone."""

    def install(self) -> None:
        pass

    def request(self, seconds_ago: float = 0.0) -> None:
        self.requested_at = time.monotonic() - seconds_ago
