"""How long a source that does not answer is waited for."""

import logging
from time import sleep

from app.errors import AppError

log = logging.getLogger(__name__)

PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0, 30.0)  # seconds; two minutes in all


class Backoff:
    """Growing pauses between tries. Each success begins the count again."""

    def __init__(self) -> None:
        self._failures = 0

    def worked(self) -> None:
        self._failures = 0

    def failed(self, error: AppError) -> None:
        """Say so and wait; the last time, raise `error`."""
        if self._failures == len(PAUSES):
            raise error
        pause = PAUSES[self._failures]
        self._failures += 1
        log.warning(
            "%s; trying again in %.0f s (%d of %d)",
            error,
            pause,
            self._failures,
            len(PAUSES),
        )
        sleep(pause)
