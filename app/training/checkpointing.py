"""What is saved of an attempt, and when: snapshots of its state, handed to the saver.

The loop waits for the copy alone; the saver commits it on a thread of its own.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from app.heartbeat import beat
from app.observe.prometheus import Saving
from app.observe.rows import Beginning, perplexity
from app.run.journal import AttemptJournal
from app.settings.variables import OptimizerSettings
from app.state.identity import RunRecord
from app.state.progress import Progress, Trainer
from app.state.random_state import RandomState
from app.state.snapshot import capture, library_versions
from app.training.compute import Compute
from app.training.preemption import GracePeriod
from app.training.saver import CheckpointSaver, SaveRequest

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1


@dataclass(eq=False)
class Checkpointing:
    """The checkpoints of a running attempt. It starts from `start_step`, whose state is saved.

    `record`, `compute`, `trainer`, `optimizer_settings`, `document_mask`: what a checkpoint says
    that it is of, and was made with.
    `logs` gives what goes into the store before a checkpoint. `resumed_from_save_at` is when the
    checkpoint that the attempt resumed from was made (Unix seconds).
    """

    record: RunRecord
    compute: Compute
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    trainer: Trainer
    optimizer_settings: OptimizerSettings
    document_mask: bool
    tokens_per_step: int
    saver: CheckpointSaver
    journal: AttemptJournal
    logs: Callable[[], Mapping[str, Beginning]]
    grace: GracePeriod
    start_step: int
    resumed_from_save_at: float | None

    def __post_init__(self) -> None:
        self._saved_step = self.start_step

    @property
    def newest_committed(self) -> int:
        """Step of the newest checkpoint in the store."""
        committed = self.saver.committed_step
        return self.start_step if committed is None else committed

    @property
    def commit_seconds(self) -> float:
        """How long the last commit took: what the next one is expected to take."""
        return self.saver.last_commit_seconds

    def age(self) -> float | None:
        """Seconds since the newest checkpoint was made, which may be an earlier attempt's."""
        if self.saver.committed_at is not None:
            return time.monotonic() - self.saver.committed_at
        if self.resumed_from_save_at is not None:
            return max(0.0, time.time() - self.resumed_from_save_at)
        return None

    def told(self) -> Saving:
        """How saving goes. Any thread may ask."""
        record = self.journal.record
        return Saving(
            age=self.age(),
            step=self.newest_committed,
            committed=self.saver.saves_committed,
            failures=record.failed_saves,
            failures_in_a_row=self.saver.failed_saves,
            commit=self.commit_seconds,
            stall=record.stall_seconds,
        )

    def has_saved(self, step: int) -> bool:
        """Whether the state after `step` was handed to the saver, or resumed from."""
        return self._saved_step == step

    def save(self, step: int, train_loss: float, validation_loss: float | None) -> None:
        """Copy the state after `step` and hand it to the saver.

        Losses are in nats per token. Raises what stopped an earlier save for good.
        """
        started = time.monotonic()
        progress = Progress(
            run=self.record,
            step=step,
            tokens=step * self.tokens_per_step,
            train_loss=train_loss,
            validation_loss=validation_loss,
            validation_perplexity=perplexity(validation_loss),
            learning_rate=self.optimizer.param_groups[0]["lr"],
            saved_at=time.time(),
            trainer=self.trainer,
            optimizer=self.optimizer_settings.model_dump(),
            document_mask=self.document_mask,
            versions=library_versions(),
            precision=self.compute.precision,
            device=self.compute.device_name,
            random=RandomState.capture(),
        )
        snapshot = capture(self.model, self.optimizer, progress)
        self.saver.submit(SaveRequest(snapshot, self.logs()))
        self._saved_step = step
        self.journal.saved(time.monotonic() - started)

    def last_save_fits(self, step: int) -> bool:
        """Whether a save of `step` would be over before SIGKILL. If not, the log says so."""
        if self.has_saved(step) or self.grace.fits(self.commit_seconds):
            return True
        log.warning(
            "a save of %.1f s does not fit: only the one in flight is finished",
            self.commit_seconds,
        )
        return False

    def wait_for_commits(self, step: int) -> bool:
        """Wait until nothing is in flight. False if `step` is not committed then, because
        GRACE_SECONDS were not enough or it was never saved."""
        while not self.saver.wait(timeout=_POLL_SECONDS):
            beat()
            if not self.grace.fits(0):
                log.warning(
                    "step %d was not committed in time (GRACE_SECONDS=%g)",
                    step,
                    self.grace.seconds,
                )
                return False
        return self.newest_committed == step
