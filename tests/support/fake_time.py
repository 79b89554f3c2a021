"""A clock that a test moves."""

from collections.abc import Callable

from app.run.clock import Clock


class FakeTime:
    """Time that passes only while somebody sleeps; `events` happen on the way."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.events: list[tuple[float, Callable[[], None]]] = []

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        due = [event for event in self.events if event[0] <= self.now]
        self.events = [event for event in self.events if event[0] > self.now]
        for _, act in due:
            act()

    def every(self, seconds: float, act: Callable[[], None], until: float) -> None:
        moment = self.now + seconds
        while moment <= self.now + until:
            self.events.append((moment, act))
            moment += seconds

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.now, self.sleep, lambda: self.now)
