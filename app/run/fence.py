"""Which checkpoints were committed by a process that had already lost the run.

The lease alone cannot rule them out. A process that is paused between its last look at the lease
and its write can still write a manifest after its successor has started. So every attempt names
its file after the step that it went on from, and writes that file before it commits anything. A
checkpoint of an earlier epoch that lies beyond that step is late: it is not part of the run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from app.run.layout import ATTEMPTS, AttemptName, file_of
from app.stores.contract import Store


@dataclass(frozen=True)
class Fences:
    """For each attempt its epoch, and the step that it went on from."""

    starts: Sequence[tuple[int, int]]

    def late(self, step: int, epoch: int) -> bool:
        """Whether a checkpoint was committed by a process that had lost the run."""
        return any(epoch < later and step > start for later, start in self.starts)


def fences(store: Store) -> Fences:
    """The fences of a run. One listing is enough: the names of the files say all of it."""
    names = (AttemptName.parse(file_of(info.key)) for info in store.list(f"{ATTEMPTS}/"))
    return Fences([name for name in names if name])
