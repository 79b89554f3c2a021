"""How long a step takes, and how fast tokens go by: by the monotonic clock, in seconds."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

_SMOOTHING = 0.1  # weight of the newest step in the mean


class StepClock:
    """`step_seconds` is a smoothed mean; 0.0 before the first step is done."""

    def __init__(self, step: int) -> None:
        self.step_seconds = 0.0
        self._created = self._row_at = self._step_at = time.monotonic()
        self._row_step, self._aside = step, 0.0

    def start(self) -> None:
        """The first step begins now."""
        self._row_at = self._step_at = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since this clock was made."""
        return time.monotonic() - self._created

    def step_done(self, waited: float) -> None:
        """`waited` seconds of the step passed without work, and are no measure of it."""
        elapsed = max(0.0, time.monotonic() - self._step_at - waited)
        weight = _SMOOTHING if self.step_seconds else 1.0
        self.step_seconds += weight * (elapsed - self.step_seconds)

    def next_step(self) -> None:
        """What is not part of a step is over: evaluating, logging, handing over a save."""
        self._step_at = time.monotonic()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time that is not training, and does not count in tokens per second."""
        started = time.monotonic()
        yield
        self._aside += time.monotonic() - started

    def row(self, step: int, tokens_per_step: int) -> float:
        """Tokens per second since the row before; the next one counts from here."""
        now = time.monotonic()
        tokens = (step - self._row_step) * tokens_per_step
        speed = tokens / max(1e-9, now - self._row_at - self._aside)
        self._row_at, self._row_step, self._aside = now, step, 0.0
        return speed
