"""How long a source that does not answer is waited for."""

import logging
import time
from collections.abc import Callable

from app.errors import AppError

log = logging.getLogger(__name__)

PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0, 30.0)  # seconds; two minutes in all

Sleep = Callable[[float], None]
"""Waits for so many seconds."""


class Backoff:
    """Growing pauses between tries. Each success begins the count again."""

    def __init__(self, sleep: Sleep | None = None) -> None:
        """`sleep` makes the pauses; None: `time.sleep`."""
        self._sleep = sleep or time.sleep
        self._failures = 0

    def worked(self) -> None:
        self._failures = 0

    def failed(self, error: AppError) -> None:
        """Log `error` and wait. Raises `error` instead when all the pauses are used up."""
        if self._failures == len(PAUSES):
            raise error
        pause = PAUSES[self._failures]
        self._failures += 1
        log.warning(
            "%s; trying again in %.0f s (%d of %d)", error, pause, self._failures, len(PAUSES)
        )
        self._sleep(pause)
