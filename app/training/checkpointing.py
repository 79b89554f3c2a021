"""What is saved of an attempt, and when: snapshots of its state, handed to the saver.

The loop waits for the copy alone; the saver commits it on a thread of its own.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from app.heartbeat import beat
from app.observe.rows import Beginning, perplexity
from app.run.journal import AttemptJournal
from app.settings.variables import DataSettings, OptimizerSettings
from app.state.progress import Progress
from app.state.random_state import RandomState
from app.state.snapshot import capture, library_versions
from app.training.preemption import GracePeriod
from app.training.saver import CheckpointSaver, SaveRequest

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Recipe:
    """What a checkpoint says that it was made with."""

    trainer: str
    optimizer: OptimizerSettings
    data: DataSettings
    tokens_per_step: int


class Checkpointing:
    """The checkpoints of a running attempt. It starts from `start_step`, whose state is saved."""

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        saver: CheckpointSaver,
        journal: AttemptJournal,
        logs: Callable[[], Mapping[str, Beginning]],
        grace: GracePeriod,
        start_step: int,
        resumed_from_save_at: float | None,
    ) -> None:
        """`logs` gives what goes into the store before a checkpoint. `resumed_from_save_at` is
        when the checkpoint that the attempt resumed from was made (Unix seconds)."""
        self.saver = saver
        self._model, self._optimizer, self._recipe = model, optimizer, recipe
        self._journal, self._logs, self._grace = journal, logs, grace
        self._start_step = self._saved_step = start_step
        self._resumed_from_save_at = resumed_from_save_at

    @property
    def newest_committed(self) -> int:
        """Step of the newest checkpoint in the store."""
        committed = self.saver.committed_step
        return self._start_step if committed is None else committed

    @property
    def commit_seconds(self) -> float:
        """How long the last commit took: what the next one is expected to take."""
        return self.saver.last_commit_seconds

    def age(self) -> float | None:
        """Seconds since the newest checkpoint was made, which may be an earlier attempt's."""
        if self.saver.committed_at is not None:
            return time.monotonic() - self.saver.committed_at
        if self._resumed_from_save_at is not None:
            return max(0.0, time.time() - self._resumed_from_save_at)
        return None

    def has_saved(self, step: int) -> bool:
        """Whether the state after `step` was handed to the saver, or resumed from."""
        return self._saved_step == step

    def save(self, step: int, train_loss: float, validation_loss: float | None) -> None:
        """Copy the state after `step` and hand it to the saver.

        Losses are in nats per token. Raises what stopped an earlier save for good.
        """
        started = time.monotonic()
        recipe = self._recipe
        progress = Progress(
            step=step,
            tokens=step * recipe.tokens_per_step,
            train_loss=train_loss,
            validation_loss=validation_loss,
            validation_perplexity=perplexity(validation_loss),
            learning_rate=self._optimizer.param_groups[0]["lr"],
            saved_at=time.time(),
            trainer=recipe.trainer,
            optimizer=recipe.optimizer.model_dump(),
            document_mask=recipe.data.document_mask,
            versions=library_versions(),
            random=RandomState.capture(),
        )
        snapshot = capture(self._model, self._optimizer, progress)
        self.saver.submit(SaveRequest(snapshot, self._logs()))
        self._saved_step = step
        self._journal.saved(time.monotonic() - started)

    def last_save_fits(self, step: int) -> bool:
        """Whether a save of `step` would be over before SIGKILL. If not, the log says so."""
        if self.has_saved(step) or self._grace.fits(self.commit_seconds):
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
            if not self._grace.fits(0):
                log.warning(
                    "step %d was not committed in time (GRACE_SECONDS=%g)",
                    step,
                    self._grace.seconds,
                )
                return False
        return self.newest_committed == step
