"""A tracker in memory, which answers as a test tells it to."""

import threading
from collections.abc import Callable, Sequence

from app.observe.rows import Row
from app.observe.tracking import CheckpointLink, Ending, Measured


class RememberedService:
    """Keeps what it is told. `failures` are raised, one by one, by what is sent.

    `after` rows of a batch it has, when such a failure is raised.
    """

    name = "wandb"
    place = "run 1 at https://someone:secret@tracker.example.org"

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.links: list[CheckpointLink] = []
        self.results: list[Measured] = []
        self.endings: list[Ending] = []
        self.connected = 0
        self.refusals: list[Exception] = []  # of `connect`
        self.failures: list[Exception] = []  # of `send`
        self.after = 0
        self.answers = threading.Event()  # cleared: no call comes back
        self.answers.set()
        self._told = threading.Condition()

    @property
    def steps(self) -> list[int]:
        return [row.step for row in self.rows]

    def connect(self) -> set[int]:
        self.answers.wait()
        self.connected += 1
        if self.refusals:
            raise self.refusals.pop(0)
        return set(self.steps)

    def send(self, rows: Sequence[Row]) -> None:
        self.answers.wait()
        if self.failures:
            self.rows += rows[: self.after]
            raise self.failures.pop(0)
        with self._told:
            self.rows += rows
            self._told.notify_all()

    def wait_until(self, told: Callable[[], bool]) -> None:
        with self._told:
            assert self._told.wait_for(told, timeout=60)

    def link(self, checkpoint: CheckpointLink) -> None:
        self.links.append(checkpoint)

    def measured(self, result: Measured) -> None:
        self.results.append(result)

    def end(self, how: Ending) -> None:
        self.endings.append(how)
