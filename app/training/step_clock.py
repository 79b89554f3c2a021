"""How long a step takes, and how many tokens are trained on in a second."""

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SMOOTHING = 0.1  # weight of the newest step in the mean
_RECENT = 31  # steps that the median is of


class StepClock:
    """`step_seconds` is a smoothed mean; 0.0 before the first step is done.

    `now` gives the time in seconds, from whatever moment on.
    """

    def __init__(self, step: int, now: Callable[[], float] = time.monotonic) -> None:
        self.step_seconds = 0.0
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._now = now
        self._created = self._row_at = self._step_at = now()
        self._row_step, self._aside = step, 0.0

    def start(self) -> None:
        """The first step begins now."""
        self._row_at = self._step_at = self._now()

    @property
    def seconds(self) -> float:
        """Since this clock was made."""
        return self._now() - self._created

    def step_done(self, waited: float) -> None:
        """`waited` seconds of the step went into waiting for data, and do not count."""
        elapsed = max(0.0, self._now() - self._step_at - waited)
        self._recent.append(elapsed)
        weight = _SMOOTHING if self.step_seconds else 1.0
        self.step_seconds += weight * (elapsed - self.step_seconds)

    @property
    def last_seconds(self) -> float:
        """Of the last step. At least one is done."""
        return self._recent[-1]

    @property
    def median_seconds(self) -> float:
        """Of the newest steps: one that was compiled or disturbed does not change it. At least one
        step is done."""
        return statistics.median(self._recent)

    def next_step(self) -> None:
        """The next step begins. Evaluating, logging and saving since `step_done` do not count."""
        self._step_at = self._now()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """The time of this block does not count in tokens per second."""
        started = self._now()
        yield
        self._aside += self._now() - started

    def row(self, step: int, tokens_per_step: int) -> float:
        """Tokens per second since the last call, which was for the row before."""
        now = self._now()
        tokens = (step - self._row_step) * tokens_per_step
        speed = tokens / max(1e-9, now - self._row_at - self._aside)
        self._row_at, self._row_step, self._aside = now, step, 0.0
        return speed
