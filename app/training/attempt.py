"""One process's share of a run: what happens around the arithmetic of a step.

A trainer computes gradients and steps the optimizer. It tells the attempt about every
micro-step and every step, and the attempt logs, saves, evaluates, and says when to stop.
Both trainers share it, so that either continues the other's run.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from app.console import on_terminal
from app.data.loader import training_loader
from app.data.sample_order import BatchGeometry
from app.data.token_stream import Corpus, OutOfData
from app.data.tokenizer import open_tokenizer
from app.errors import ConfigError, Preempted
from app.generation.decoding import Sampling, generate_tokens
from app.generation.inference import InferenceModel
from app.heartbeat import beat
from app.model.loss import LossFunction
from app.model.smollm2 import SmolLM2, flops_per_token
from app.observe.metrics import MetricsLog, Row, perplexity, step_line
from app.run.attempt_text import summary
from app.run.clock import seconds_of_this_process
from app.run.journal import AttemptJournal
from app.run.lease import Lease
from app.settings.variables import (
    CheckpointSettings,
    DataSettings,
    LogSettings,
    OptimizerSettings,
)
from app.state.progress import Progress
from app.state.random_state import RandomState
from app.state.snapshot import capture, library_versions
from app.training.compute import Compute
from app.training.evaluation import evaluate
from app.training.preemption import GracePeriod, StopRequest
from app.training.saver import CheckpointSaver, SaveRequest
from app.training.schedule import Schedule
from app.training.step_clock import StepClock

log = logging.getLogger(__name__)

_SAMPLE = Sampling(max_tokens=40)
_POLL_SECONDS = 0.1
_REPORT_SECONDS = 2.0


@dataclass(frozen=True)
class Sections:
    """The sections of the settings that a running attempt needs."""

    data: DataSettings
    optimizer: OptimizerSettings
    checkpoints: CheckpointSettings
    logs: LogSettings
    trainer: str


class Attempt:
    """State of a running attempt. `step` counts finished optimizer steps of the run."""

    def __init__(
        self,
        *,
        sections: Sections,
        compute: Compute,
        geometry: BatchGeometry,
        model: SmolLM2,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        corpus: Corpus,
        saver: CheckpointSaver,
        lease: Lease,
        metrics: MetricsLog,
        journal: AttemptJournal,
        stop: StopRequest,
        publish_report: Callable[[], None],
        start_step: int,
        resumed: Progress | None = None,
    ) -> None:
        self.sections, self.compute, self.geometry = sections, compute, geometry
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.loss_function = LossFunction(
            model,
            compile_model=compute.compile,
            fused=compute.fused_loss,
            z_loss_weight=sections.optimizer.z_loss,
            end_token=corpus.tokenizer.eos_token_id if sections.data.document_mask else None,
        )
        self.step = self.start_step = start_step
        self.target = schedule.horizons[-1]
        self._corpus, self._saver, self._lease = corpus, saver, lease
        self._metrics, self._journal, self._stop = metrics, journal, stop
        self._grace = GracePeriod(stop, sections.checkpoints.grace_seconds)
        self._publish_report, self._saved_step = publish_report, start_step
        self._resumed_from_save_at = resumed.saved_at if resumed else None
        self._loss: Tensor | None = None  # of the last finished step
        self._finite = torch.ones((), dtype=torch.bool, device=compute.device)
        self._validation_loss = resumed.validation_loss if resumed else None  # the newest
        self._clock = StepClock(start_step)
        self._bar: tqdm[None] | None = None

    def loader(self) -> DataLoader[Tensor]:
        """Micro-batches (B, T + 1) of all steps that are left."""
        return training_loader(
            self._corpus.train,
            self._corpus.sequences,
            self.geometry,
            self.step,
            self.target,
            num_workers=self.compute.num_workers,
            pin_memory=self.compute.device.type == "cuda",
        )

    def begin(self) -> None:
        """Training starts now. Until the first step is done, a signal still ends it at once:
        there is nothing to save, and the first step may compile for minutes."""
        self._stop.install()
        self._clock.start()
        if on_terminal():
            self._bar = tqdm(total=self.target, initial=self.step, unit="step", smoothing=0.05)

    def learning_rate(self) -> float:
        """The rate for the step that is about to be made; also set in the optimizer."""
        rate = self.schedule.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def micro_step_done(self) -> bool:
        """True when the rest of this step does not fit into GRACE_SECONDS.

        The weights are those of the last finished step until the optimizer moves them,
        so the half-made gradients can be dropped and that step committed.
        """
        beat()
        finish = self._clock.step_seconds or math.inf
        return not self._grace.fits(finish + self._saver.last_commit_seconds)

    def step_done(self, loss: Tensor, grad_norm: Tensor) -> bool:
        """Account for a finished optimizer step. True when the trainer has to stop.

        `loss` is the mean over the step's micro-batches. Nothing is read back from the
        device but where a row or a checkpoint needs it.
        """
        if self.step == self.start_step:
            self._stop.defer()
            self._journal.note(seconds_to_first_step=seconds_of_this_process())
        rate = self.optimizer.param_groups[0]["lr"]
        self.step += 1
        self._journal.note(step=self.step, seconds=self._clock.seconds)
        self._clock.step_done(waited=self._corpus.take_waited())
        last = self.step == self.target
        evaluates = self._every(self.sections.data.val_every_steps)
        logs = evaluates or last or self._every(self.sections.logs.log_every_steps)
        saves = last or self._every(self.sections.checkpoints.checkpoint_every_steps)
        self._loss = loss.detach().clone()
        self._finite &= torch.isfinite(loss) & torch.isfinite(grad_norm)
        self._log_epoch()
        if logs or saves:
            self._check_finite(grad_norm)
        evaluated = None
        if evaluates:
            try:
                with self._clock.aside():
                    evaluated = self.evaluate()
            except OutOfData:  # the step is made, and is going to be committed
                self._log_row(rate, float(grad_norm), None)
                raise
            self._validation_loss = self._validation_loss if evaluated is None else evaluated
        if logs:
            self._log_row(rate, float(grad_norm), evaluated)
        if saves:
            self._save()
        if self._every(self.sections.logs.sample_every_steps) and not self._stop.requested:
            with self._clock.aside():
                self._log_sample()
        if self._bar is not None:
            self._bar.update()
        self._saver.raise_if_failed()
        if self._lease.lost:
            self._lease.check()
        self._corpus.take_waited()
        self._clock.next_step()
        return self._stop.requested or last

    def evaluate(self) -> float | None:
        """The validation loss in nats per token.

        None if asked to stop and it does not fit into GRACE_SECONDS: the finished step is
        worth more than a number about it.
        """
        data, geometry = self.sections.data, self.geometry
        try:
            batches = self._corpus.validation(geometry.batch_size, data.val_tokens)
        except OutOfData as end:
            if end.__cause__ is not None:
                raise
            self._leave_evaluation_out()
            return None

        def goes_on(seconds_left: float) -> bool:
            return self._grace.fits(seconds_left + self._saver.last_commit_seconds)

        loss = evaluate(self.model, self.loss_function, batches, self.compute, goes_on)
        if loss is None:
            self._leave_evaluation_out()
        return loss

    def _leave_evaluation_out(self) -> None:
        log.warning("asked to stop: the evaluation of step %d is left out", self.step)

    def finish(self, failure: BaseException | None = None) -> None:
        """Commit what is left to commit.

        Then raises `failure`, which ended the training before its time, or Preempted if the
        target was not reached.
        """
        if self._bar is not None:
            self._bar.close()
        self._save_last()
        committed = self._wait_for_commits()
        if failure is not None:
            log.error(
                "ended at step %d: newest checkpoint: %d", self.step, self._newest_committed()
            )
            raise failure
        if self.step < self.target or not committed:
            raise Preempted(
                f"stopped at step {self.step} of {self.target}; newest checkpoint: step "
                f"{self._newest_committed()}; start again to continue"
            )
        log.info("target reached: step %d of %d", self.step, self.target)

    def close(self, why: str) -> None:
        """Leave nothing running, and say what the attempt did and why it ended."""
        if self._bar is not None:
            self._bar.close()
        self._saver.close()
        self._metrics.close()
        if self.step > self.start_step:
            log.info(summary(self._journal.record))
        self._grace.record_end(lambda: self._last_words(why))
        self._grace.give_lease_back(self._lease.release)
        self._corpus.close()  # last: it keeps tokens, which costs less to lose than the lease

    def _last_words(self, why: str) -> None:
        recorded = self._journal.end(why)
        if recorded and not self._lease.lost and self._grace.fits(_REPORT_SECONDS):
            self._publish_report()

    def _every(self, interval: int) -> bool:
        return interval > 0 and self.step % interval == 0

    def _train_loss(self) -> float:
        return math.nan if self._loss is None else float(self._loss)

    def _check_finite(self, grad_norm: Tensor | None = None) -> None:
        """Weights after an infinite gradient are worth nothing, and must not be saved."""
        if bool(self._finite):
            return
        norm = "" if grad_norm is None else f", gradient norm {float(grad_norm):g}"
        raise ConfigError(
            f"loss or gradients are not finite at step {self.step} (loss {self._train_loss():g}"
            f"{norm}); nothing of it was saved. Lower LEARNING_RATE (now "
            f"{self.sections.optimizer.learning_rate:g}), raise WARMUP_STEPS or set "
            f"PRECISION=32-true; the run continues from step {self._newest_committed()}"
        )

    def _save(self) -> None:
        if self._saved_step == self.step:
            return
        self._check_finite()
        started = time.monotonic()
        progress = Progress(
            step=self.step,
            tokens=self.step * self.geometry.tokens_per_step,
            train_loss=self._train_loss(),
            validation_loss=self._validation_loss,
            validation_perplexity=perplexity(self._validation_loss),
            learning_rate=self.optimizer.param_groups[0]["lr"],
            saved_at=time.time(),
            trainer=self.sections.trainer,
            optimizer=self.sections.optimizer.model_dump(),
            document_mask=self.sections.data.document_mask,
            versions=library_versions(),
            random=RandomState.capture(),
        )
        snapshot = capture(self.model, self.optimizer, progress)
        self._saver.submit(SaveRequest(snapshot, self._metrics.objects()))
        self._saved_step = self.step
        self._journal.saved(time.monotonic() - started)

    def _save_last(self) -> None:
        """SIGKILL follows GRACE_SECONDS after SIGTERM: do what saves the most until then."""
        stop, needed = self._stop.requested, self._saver.last_commit_seconds
        if stop and self.step == self.target:
            log.info("asked to stop: step %d is the last one, its commit ends the run", self.step)
        elif stop:
            log.warning(
                "asked to stop: committing step %d within %g s", self.step, self._grace.seconds
            )
        if self._saved_step != self.step and not self._grace.fits(needed):
            log.warning("a save of %.1f s does not fit: only the one in flight is finished", needed)
        else:
            self._save()

    def _wait_for_commits(self) -> bool:
        """False if asked to stop, and GRACE_SECONDS were not enough."""
        while not self._saver.wait(timeout=_POLL_SECONDS):
            beat()
            if not self._grace.fits(0):
                log.warning(
                    "step %d was not committed in time (GRACE_SECONDS=%g)",
                    self.step,
                    self._grace.seconds,
                )
                return False
        return self._newest_committed() == self.step

    def _newest_committed(self) -> int:
        committed = self._saver.committed_step
        return self.start_step if committed is None else committed

    def _log_row(self, rate: float, grad_norm: float, evaluated: float | None) -> None:
        speed = self._clock.row(self.step, self.geometry.tokens_per_step)
        shape = self.model.config, self.geometry.seq_len
        row = Row(
            step=self.step,
            tokens=self.step * self.geometry.tokens_per_step,
            loss=self._train_loss(),
            learning_rate=rate,
            grad_norm=grad_norm,
            tokens_per_second=speed,
            mfu=self.compute.utilization(speed * flops_per_token(*shape)),
            mfu_full=self.compute.utilization(speed * flops_per_token(*shape, causal=False)),
            validation_loss=evaluated,
            validation_perplexity=perplexity(evaluated),
            attempt=self._lease.epoch,
            time=time.time(),
            checkpoint_age_seconds=self._save_age(),
            saves_committed=self._saver.saves_committed,
            failed_saves=self._saver.failed_saves,
        )
        self._metrics.add(row)
        text = step_line(row, self.target, self._clock.step_seconds)
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {row.loss:.3f}, lr {row.learning_rate:.2e}")
            if evaluated is None:
                return
        log.info(text, extra={"fields": vars(row)})

    def _log_epoch(self) -> None:
        """Say that the step just made began an epoch. An epoch may begin inside a step."""
        samples = self.geometry.global_batch_size
        first = (self.step - 1) * samples
        begun = self._corpus.order.epochs_begun(first, first + samples)
        if len(begun) == 1:
            log.info("epoch %d begins at step %d", begun[0] + 1, self.step)
        elif begun:
            log.info("epochs %d to %d begin at step %d", begun[0] + 1, begun[-1] + 1, self.step)

    def _save_age(self) -> float | None:
        """Seconds since the newest checkpoint, which may be an earlier attempt's."""
        if self._saver.committed_at is not None:
            return time.monotonic() - self._saver.committed_at
        if self._resumed_from_save_at is not None:
            return max(0.0, time.time() - self._resumed_from_save_at)
        return None

    def _log_sample(self) -> None:
        """A short text from the model as it is; the run's random numbers are left alone."""
        files = self._corpus.tokenizer
        tokenizer = open_tokenizer(files.directory / "tokenizer.json")
        model = InferenceModel(self.model)
        with self.compute.autocast():
            ids = list(generate_tokens(model, [files.eos_token_id], _SAMPLE, None))
        log.info("sample at step %d: %r", self.step, tokenizer.decode(ids))


Trainer = Callable[[Attempt], None]
