"""A running attempt: the steps, and what is saved and shown of them.

What is saved is the matter of `Checkpointing`, what is shown that of `StepLog`. Both trainers share
all three, so that either continues the other's run.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from app.errors import ConfigError, LostPeer, Preempted
from app.failures import first_line
from app.observe.tracking import Ending
from app.ranks.checksum import DifferentWeights
from app.ranks.slow import SlowRanks
from app.run.clock import seconds_of_this_process
from app.run.journal import TARGET_REACHED, AttemptJournal, summary
from app.run.lease import Doing, Lease
from app.training.checkpointing import Checkpointing
from app.training.step_log import StepLog
from app.training.steps import Steps

log = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class Attempt(Steps):
    """A running attempt of the process that holds the lease: rank 0, or the only one."""

    checkpointing: Checkpointing
    step_log: StepLog
    lease: Lease
    journal: AttemptJournal
    publish_report: Callable[[], None]
    keep_flight_record: Callable[[], None]
    report_seconds: float = 2.0  # of a grace period, for the report page

    def __post_init__(self) -> None:
        super().__post_init__()
        self._doing, self._slow = "training", SlowRanks()

    def begin(self) -> None:
        """See `Steps`."""
        super().begin()
        self.lease.tells = self.doing
        self.step_log.begin(self.step)

    def doing(self) -> Doing:
        """What is told of this attempt while it runs. Any thread may ask."""
        saving = self.checkpointing.saver.saving_step
        also = "" if saving is None else f", saving step {saving}"
        return Doing(self._doing + also, self.step)

    @property
    def commit_seconds(self) -> float:
        """See `Steps`."""
        return self.checkpointing.commit_seconds

    def evaluate(self) -> float | None:
        """See `Steps`."""
        self._doing = "evaluating"
        loss = super().evaluate()
        self._doing = "training"
        return loss

    def step_done(self, loss: Tensor, grad_norm: Tensor) -> bool:
        """See `Steps`. The loss is read back from the device only where a row or a checkpoint
        needs it, since reading waits for the device."""
        first = self.step == self.start_step
        self._account(loss, grad_norm)
        if first:
            self.journal.note(seconds_to_first_step=seconds_of_this_process())
        self.journal.note(step=self.step, seconds=self.clock.seconds)
        self._look_at_ranks()
        last = self.step == self.target
        evaluates = self._evaluates()
        logs = evaluates or last or self._every(self.sections.logs.log_every_steps)
        saves = last or self._every(self.sections.checkpoints.checkpoint_every_steps)
        self.step_log.log_epoch(self.step)
        if logs or saves:
            self._check_finite(grad_norm)
        evaluated = self._evaluated(grad_norm) if evaluates else None
        if logs:
            self._log_row(grad_norm, evaluated)
        if saves:
            self.check_same_weights()
        if self._every(self.sections.logs.sample_every_steps) and not self.stop.requested:
            with self.clock.aside():
                self.step_log.log_sample(self.step, self.model)
        if saves:  # the sample goes along
            self._save()
        self.step_log.advance(self.step)
        self.checkpointing.saver.raise_if_failed()
        if self.lease.lost:
            self.lease.check()
        self._next_step()
        return self.agreement.stopping or last

    def finish(self, failure: BaseException | None = None) -> None:
        """Commit the last step if that is possible, and wait for commits in flight.

        Then raises `failure`, which ended the training before its time, or Preempted if the
        target was not reached.
        """
        self.step_log.close_bar()
        self._doing = "ending"
        try:
            if failure is None:
                self.check_same_weights()
        except (LostPeer, DifferentWeights) as difference:
            failure = difference
        if failure is not None:
            self._save_in_spite_of(failure)
            if isinstance(failure, LostPeer):
                self.keep_flight_record()
            raise failure
        self._save_last()
        committed = self.checkpointing.wait_for_commits(self.step)
        self.agreement.committed(last=self.step >= self.target and committed)
        newest = self.checkpointing.newest_committed
        if self.step < self.target or not committed:
            raise Preempted(
                f"stopped at step {self.step} of {self.target}; newest checkpoint: step "
                f"{newest}; start again to continue"
            )
        log.info("target reached: step %d of %d", self.step, self.target)

    def close(self, why: str) -> None:
        """Leave nothing running, and say what the attempt did and why it ended."""
        self.step_log.close_bar()
        self.profiler.close(lambda: self.grace.fits(0))
        self.checkpointing.saver.close()
        self.step_log.metrics.close()
        if self.step > self.start_step:
            log.info(summary(self.journal.record))
        # While the run is this process's: its successor asks the trackers what they have.
        self.step_log.tracking.close(self._ending(why), fits=self.grace.fits)
        self.grace.record_end(lambda: self._record_end(why))
        self.grace.give_lease_back(self.lease.release)
        # Closing the corpus stores tokens, which may take long: the lease goes first.
        self.corpus.close()
        if not self.stop.requested:
            self.journal.close()

    def _ending(self, why: str) -> Ending:
        if why == TARGET_REACHED:
            return "finished"
        return "preempted" if self.stop.requested else "failed"

    def _record_end(self, why: str) -> None:
        recorded = self.journal.end(why)
        if recorded and not self.lease.lost and self.grace.fits(self.report_seconds):
            self.publish_report()

    def _look_at_ranks(self) -> None:
        if told := self.team.take_told():
            self.step_log.metrics.show_ranks(told)
            if line := self._slow.news(told):
                log.warning(line)

    def _check_finite(self, grad_norm: Tensor | None = None) -> None:
        """Raise ConfigError after an infinite loss or gradient: its weights must not be saved."""
        if bool(self._finite):
            return
        norm = "" if grad_norm is None else f", gradient norm {float(grad_norm):g}"
        raise ConfigError(
            f"loss or gradients are not finite at step {self.step} (loss {self.train_loss:g}"
            f"{norm}); nothing of it was saved. Lower LEARNING_RATE (now "
            f"{self.sections.optimizer.learning_rate:g}), raise WARMUP_STEPS or set "
            "PRECISION=32-true; the run continues from step "
            f"{self.checkpointing.newest_committed}"
        )

    def _evaluated(self, grad_norm: Tensor) -> float | None:
        try:
            with self.clock.aside():
                evaluated = self.evaluate()
        except Exception:  # the step is finished and will be committed, so it gets its row
            self._log_row(grad_norm, None)
            raise
        if evaluated is not None:
            self.validation_loss, self.validated_step = evaluated, self.step
        return evaluated

    def _log_row(self, grad_norm: Tensor, evaluated: float | None) -> None:
        rate = self.optimizer.param_groups[0]["lr"]
        self.step_log.log_row(
            self.step, self.model, self.train_loss, rate, float(grad_norm), evaluated
        )

    def _save(self) -> None:
        if not self.checkpointing.has_saved(self.step):
            self._check_finite()
            self.checkpointing.save(self.step, self.train_loss, self.validation_loss)

    def _save_in_spite_of(self, failure: BaseException) -> None:
        """Commit the last finished step if its weights are whole and the store takes them."""
        try:
            self.optimizer.zero_grad()  # a snapshot can use the memory of the gradients
            if self._moving:
                log.warning("it ended in the middle of an update: step %d is not whole", self.step)
            elif bool(self._finite) and not isinstance(failure, DifferentWeights):
                self._save_last()
            self.checkpointing.wait_for_commits(self.step)
        except Exception as error:  # noqa: BLE001 - what ended the training counts, and is raised
            if error is not failure:
                log.warning("step %d could not be committed: %s", self.step, first_line(error))
        log.warning(
            "ended at step %d; newest checkpoint: step %d",
            self.step,
            self.checkpointing.newest_committed,
        )

    def _save_last(self) -> None:
        """Save the last finished step, unless GRACE_SECONDS leave no time for that."""
        if self.stop.requested and self.step == self.target:
            log.info("asked to stop: step %d is the last one, its commit ends the run", self.step)
        elif self.stop.requested:
            log.warning(
                "asked to stop: committing step %d within %g s", self.step, self.grace.seconds
            )
        if self.checkpointing.last_save_fits(self.step):
            self._save()
