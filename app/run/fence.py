"""Which checkpoints were committed by a process that had already lost the run.

The lease alone cannot rule them out. A process that is paused between its last look at the lease
and its write can still write a manifest after its successor has started. So every attempt names
its file after the checkpoint that it went on from, and writes that file before it commits
anything. A checkpoint of an earlier epoch that lies beyond that step is late: it is not part of
the run.

The file of an attempt may itself be late. An attempt that is paused before it writes its file may
wake up after others have gone on from a checkpoint that the file would make late. So what a later
attempt went on from is never late, and neither are the checkpoints that led there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from app.run.layout import AttemptName, CheckpointName


@dataclass(frozen=True)
class Fences:
    """The names of all attempts of a run."""

    attempts: Sequence[AttemptName]

    def late(self, checkpoint: CheckpointName) -> bool:
        """Whether it was committed by a process that had lost the run."""
        step, epoch = checkpoint.step, checkpoint.epoch
        fencing = [a.epoch for a in self.attempts if epoch < a.epoch and step > a.start_step]
        if not fencing:
            return False
        after = [attempt for attempt in self.attempts if attempt.epoch > max(fencing)]
        return not any(self._led_to(attempt, checkpoint) for attempt in after)

    def _led_to(self, attempt: AttemptName, checkpoint: CheckpointName) -> bool:
        """Whether `attempt` went on from `checkpoint`, or from one that came after it."""
        by_epoch = {attempt.epoch: attempt for attempt in self.attempts}
        while True:
            before = attempt.resumed_epoch
            if before is None:
                # Earlier versions did not write whose checkpoint it was.
                return checkpoint.step == attempt.start_step and checkpoint.epoch < attempt.epoch
            if before == checkpoint.epoch:
                return checkpoint.step <= attempt.start_step
            if before not in by_epoch or before >= attempt.epoch:
                return False
            attempt = by_epoch[before]
