"""One process's share of a run: what a trainer talks to.

A trainer computes gradients and steps the optimizer. It tells the attempt about every
micro-step and every step, and the attempt says when to stop. What is saved is the matter of
`Checkpointing`, what is shown that of `StepLog`. Both trainers share all three, so that either
continues the other's run.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from app.data.loader import training_loader
from app.data.sample_order import BatchGeometry
from app.data.token_stream import OutOfData, TokenStream
from app.errors import ConfigError, Preempted
from app.failures import first_line
from app.heartbeat import beat, compiling_begins, steps_take
from app.model.loss import LossFunction
from app.model.smollm2 import SmolLM2
from app.run.clock import seconds_of_this_process
from app.run.journal import AttemptJournal, summary
from app.run.lease import Doing, Lease
from app.settings.variables import (
    CheckpointSettings,
    DataSettings,
    LogSettings,
    OptimizerSettings,
)
from app.training.checkpointing import Checkpointing
from app.training.compute import Compute
from app.training.evaluation import evaluate
from app.training.preemption import GracePeriod, StopRequest
from app.training.schedule import Schedule
from app.training.step_clock import StepClock
from app.training.step_log import StepLog

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sections:
    """The sections of the settings that a running attempt needs."""

    data: DataSettings
    optimizer: OptimizerSettings
    checkpoints: CheckpointSettings
    logs: LogSettings


@dataclass(eq=False)
class Attempt:
    """A running attempt, from `start_step` on. `step` counts finished optimizer steps of the run.

    `validation_loss` is the newest one of the run, in nats per token.
    """

    sections: Sections
    compute: Compute
    geometry: BatchGeometry
    model: SmolLM2
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    corpus: TokenStream
    checkpointing: Checkpointing
    step_log: StepLog
    lease: Lease
    journal: AttemptJournal
    clock: StepClock
    stop: StopRequest
    grace: GracePeriod
    publish_report: Callable[[], None]
    start_step: int
    validation_loss: float | None
    report_seconds: float = 2.0  # of a grace period, for the report page

    def __post_init__(self) -> None:
        self.step, self.target = self.start_step, self.schedule.horizons[-1]
        masked = self.sections.data.document_mask
        self.loss_function = LossFunction(
            self.model,
            compile_model=self.compute.compile,
            fused=self.compute.fused_loss,
            z_loss_weight=self.sections.optimizer.z_loss,
            end_token=self.corpus.tokenizer.eos_token_id if masked else None,
        )
        self._doing = "training"
        self._loss: Tensor | None = None  # of the last finished step
        self._moving = False  # the weights are between two steps
        self._finite = torch.ones((), dtype=torch.bool, device=self.compute.device)

    def loader(self) -> DataLoader[Tensor]:
        """Micro-batches (B, T + 1) of all steps that are left."""
        return training_loader(
            self.corpus.train,
            self.corpus.sequences,
            self.geometry,
            self.step,
            self.target,
            num_workers=self.compute.num_workers,
            pin_memory=self.compute.device.type == "cuda",
            waiting=self._raise_if_stopping,
            recover=self.corpus.recover,
        )

    def begin(self) -> None:
        """Training starts now. Until the first step is done, a signal still ends it at once:
        there is nothing to save, and the first step may compile for minutes."""
        self.stop.install()
        self.lease.tells = self.doing
        if self.compute.compile:
            compiling_begins()
        self.clock.start()
        self.step_log.begin(self.step)

    def doing(self) -> Doing:
        """What is told of this attempt while it runs. Any thread may ask."""
        saving = self.checkpointing.saver.saving_step
        also = "" if saving is None else f", saving step {saving}"
        return Doing(self._doing + also, self.step)

    def learning_rate(self) -> float:
        """The rate for the step that is about to be made; also set in the optimizer."""
        rate = self.schedule.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def micro_step_done(self) -> bool:
        """True when the rest of this step does not fit into GRACE_SECONDS.

        The trainer then returns at once. The weights are those of the last finished step until
        the optimizer moves them, so that step can be committed without the half-made gradients.
        """
        beat()
        finish = self.clock.step_seconds or math.inf
        return not self.grace.fits(finish + self.checkpointing.commit_seconds)

    def update_begins(self) -> None:
        """The optimizer moves the weights now: until `step_done` they are those of no step."""
        self._moving = True

    def step_done(self, loss: Tensor, grad_norm: Tensor) -> bool:
        """Account for a finished optimizer step. True when the trainer has to stop.

        `loss` is the mean over the step's micro-batches, in nats per token. It is read back from
        the device only where a row or a checkpoint needs it, since reading waits for the device.
        """
        if self.step == self.start_step:
            self.stop.defer()
            self.journal.note(seconds_to_first_step=seconds_of_this_process())
        self.step += 1
        self._moving = False
        self.journal.note(step=self.step, seconds=self.clock.seconds)
        self.clock.step_done(waited=self.corpus.take_waited())
        steps_take(self.clock.median_seconds)
        last = self.step == self.target
        evaluates = self._evaluates()
        logs = evaluates or last or self._every(self.sections.logs.log_every_steps)
        saves = last or self._every(self.sections.checkpoints.checkpoint_every_steps)
        self._loss = loss.detach().clone()
        self._finite &= torch.isfinite(loss) & torch.isfinite(grad_norm)
        self.step_log.log_epoch(self.step)
        if logs or saves:
            self._check_finite(grad_norm)
        evaluated = self._evaluated(grad_norm) if evaluates else None
        if logs:
            self._log_row(grad_norm, evaluated)
        if self._every(self.sections.logs.sample_every_steps) and not self.stop.requested:
            with self.clock.aside():
                self.step_log.log_sample(self.step, self.model)
        if saves:  # the sample goes along
            self._save()
        self.step_log.advance()
        self.checkpointing.saver.raise_if_failed()
        if self.lease.lost:
            self.lease.check()
        self.corpus.take_waited()
        self.clock.next_step()
        return self.stop.requested or last

    def evaluate(self) -> float | None:
        """The validation loss in nats per token.

        None if this process is asked to stop and the evaluation does not fit into GRACE_SECONDS:
        saving the finished step comes first. Raises OutOfData if the held-out text cannot be had.
        """
        data, geometry = self.sections.data, self.geometry
        try:
            batches = self.corpus.validation(geometry.batch_size, data.val_tokens)
        except OutOfData as end:
            if end.__cause__ is not None:
                raise
            self._leave_evaluation_out()
            return None

        def goes_on(seconds_left: float) -> bool:
            return self.grace.fits(seconds_left + self.checkpointing.commit_seconds)

        self._doing = "evaluating"
        loss = evaluate(self.model, self.loss_function, batches, self.compute, goes_on)
        self._doing = "training"
        if loss is None:
            self._leave_evaluation_out()
        return loss

    def finish(self, failure: BaseException | None = None) -> None:
        """Commit the last step if that is possible, and wait for commits in flight.

        Then raises `failure`, which ended the training before its time, or Preempted if the
        target was not reached.
        """
        self.step_log.close_bar()
        self._doing = "ending"
        if failure is not None:
            self._save_in_spite_of(failure)
            raise failure
        self._save_last()
        committed = self.checkpointing.wait_for_commits(self.step)
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
        self.checkpointing.saver.close()
        self.step_log.metrics.close()
        if self.step > self.start_step:
            log.info(summary(self.journal.record))
        self.grace.record_end(lambda: self._record_end(why))
        self.grace.give_lease_back(self.lease.release)
        # Closing the corpus stores tokens, which may take long: the lease goes first.
        self.corpus.close()
        if not self.stop.requested:
            self.journal.close()

    def _raise_if_stopping(self) -> None:
        if self.stop.requested:
            raise OutOfData

    def _record_end(self, why: str) -> None:
        recorded = self.journal.end(why)
        if recorded and not self.lease.lost and self.grace.fits(self.report_seconds):
            self.publish_report()

    def _every(self, interval: int) -> bool:
        return interval > 0 and self.step % interval == 0

    def _evaluates(self) -> bool:
        """After the first step of the run too, so that the curve begins at its beginning."""
        interval = self.sections.data.val_every_steps
        return self._every(interval) or (interval > 0 and self.step == 1)

    @property
    def train_loss(self) -> float:
        """Of the last finished step, in nats per token; NaN before the first one."""
        return math.nan if self._loss is None else float(self._loss)

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
            self.validation_loss = evaluated
        return evaluated

    def _leave_evaluation_out(self) -> None:
        log.warning("asked to stop: the evaluation of step %d is left out", self.step)

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
            elif bool(self._finite):
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


Trainer = Callable[[Attempt], None]
