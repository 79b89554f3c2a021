"""What each process of a run does in a step, whichever rank it has: what a trainer talks to.

A trainer computes gradients and steps the optimizer. It tells these about every micro-step and
every step, and they say when to stop. What rank 0, or the only process, does besides is in
`attempt`, and what the others do in `follower`.
"""

import logging
import math
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from app.data.loader import training_loader
from app.data.sample_order import BatchGeometry
from app.data.token_stream import OutOfData, TokenStream
from app.heartbeat import beat, compiling_begins, steps_take
from app.model.loss import LossFunction
from app.model.smollm2 import SmolLM2
from app.ranks.checksum import check_same_weights
from app.ranks.reduction import reduce_gradients
from app.ranks.slow import TOLD_EVERY
from app.ranks.team import Team
from app.settings.variables import (
    CheckpointSettings,
    DataSettings,
    LogSettings,
    OptimizerSettings,
)
from app.state.snapshot import shared_tensors
from app.training.agreement import Agreement
from app.training.compute import Compute
from app.training.evaluation import evaluate
from app.training.own_part import OwnPart
from app.training.preemption import GracePeriod, StopRequest
from app.training.profiling import StepProfiler
from app.training.schedule import Schedule
from app.training.step_clock import StepClock

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sections:
    """The sections of the settings that a running attempt needs."""

    data: DataSettings
    optimizer: OptimizerSettings
    checkpoints: CheckpointSettings
    logs: LogSettings


@dataclass(eq=False, kw_only=True)
class Steps:
    """The steps of a run from `start_step` on. `step` counts finished optimizer steps of the run.

    `validation_loss` is the newest one of the run, in nats per token, and `validated_step` the step
    it is of, if this process measured it.
    """

    sections: Sections
    compute: Compute
    geometry: BatchGeometry
    model: SmolLM2
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    corpus: TokenStream
    clock: StepClock
    stop: StopRequest
    grace: GracePeriod
    team: Team
    agreement: Agreement
    profiler: StepProfiler
    start_step: int
    validation_loss: float | None

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
        self.validated_step: int | None = None
        self._micro_step = 0  # of the step that is made
        self._loss: Tensor | None = None  # of the last finished step
        self._moving = False  # the weights are between two steps
        self._finite = torch.ones((), dtype=torch.bool, device=self.compute.device)
        self._own_part = OwnPart(self.compute.device)
        self._own_seconds: deque[float] = deque(maxlen=TOLD_EVERY)

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
            arrived=self.agreement.all_have_data if self.team.is_many else None,
            recover=self.corpus.recover,
        )

    def begin(self) -> None:
        """Training starts now. Until the first step is done, a signal still ends it at once:
        there is nothing to save, and the first step may compile for minutes."""
        self.stop.install()
        if self.compute.compile:
            compiling_begins()
        self.profiler.begin(self.step, self.target)
        self.clock.start()
        self._own_part.begins()

    def learning_rate(self) -> float:
        """The rate for the step that is about to be made; also set in the optimizer."""
        self.profiler.step_begins(self.step + 1)
        rate = self.schedule.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def loss(self, tokens: Tensor) -> Tensor:
        """The mean loss of a micro-batch (B, T + 1) in nats per token; 0 where its samples do not
        count, since this process has none left in the step."""
        loss = self.loss_function(tokens)
        return loss if self.geometry.counts(self._micro_step) else loss * 0

    def micro_step_done(self) -> bool:
        """True when the rest of this step does not fit into GRACE_SECONDS.

        The trainer then returns at once. The weights are those of the last finished step until
        the optimizer moves them, so that step can be committed without the half-made gradients.
        Raises LostPeer.
        """
        beat()
        self.profiler.micro_step_done()
        self._micro_step = (self._micro_step + 1) % self.geometry.accumulation
        finish = self.clock.step_seconds or math.inf
        fits = self.grace.fits(finish + self.commit_seconds)
        return self.agreement.drops_step(fits=fits)

    def reduce_gradients(self, loss: Tensor) -> None:
        """Give each process the gradients, and the `loss`, of the whole step. Raises LostPeer."""
        self._own_part.ends()
        reduce_gradients(self.model.parameters(), loss, self.team, self.geometry.share)

    def update_begins(self) -> None:
        """The optimizer moves the weights now: until `step_done` they are those of no step."""
        self._moving = True

    def step_done(self, loss: Tensor, grad_norm: Tensor) -> bool:
        """Account for a finished optimizer step. True when the trainer has to stop.

        `loss` is the mean over the step's samples, in nats per token.
        """
        raise NotImplementedError

    @property
    def commit_seconds(self) -> float:
        """How long a commit by this process is expected to take."""
        return 0.0

    def evaluate(self) -> float | None:
        """The validation loss in nats per token.

        None if this process is asked to stop and the evaluation does not fit into GRACE_SECONDS:
        saving the finished step comes first. Raises OutOfData if the held-out text cannot be had.
        """
        data, geometry = self.sections.data, self.geometry
        try:
            batches = self.corpus.validation(geometry.batch_size, data.val_tokens)
            self.agreement.all_have_data()
        except OutOfData as end:
            if end.__cause__ is not None:
                raise
            self._leave_evaluation_out()
            return None

        def goes_on(seconds_left: float) -> bool:
            return self.grace.fits(seconds_left + self.commit_seconds)

        with self.agreement.by_itself():
            loss = evaluate(
                self.model, self.loss_function, batches, self.compute, goes_on, self.team
            )
        if loss is None:
            self._leave_evaluation_out()
        return loss

    def check_same_weights(self) -> None:
        """Raises DifferentWeights, on all processes, where one has other weights, or moments, than
        the rest."""
        if self.team.is_many:
            check_same_weights(self.team, shared_tensors(self.model, self.optimizer), self.step)

    def _raise_if_stopping(self) -> None:
        if self.agreement.waits_and_stops():
            raise OutOfData

    def _account(self, loss: Tensor, grad_norm: Tensor) -> None:
        """A step is finished: the weights are whole again."""
        if self.step == self.start_step:
            self.stop.defer()
        elif self.step == self.start_step + 1:  # the first evaluation may be compiled too
            self.team.settled()
        self.step += 1
        self._moving = False
        self.clock.step_done(waited=self.corpus.take_waited())
        with self.clock.aside():
            self.profiler.step_done(self.step)
        steps_take(self.clock.median_seconds)
        own = self.clock.last_seconds - self.team.take_waited()
        self._own_seconds.append(self._own_part.seconds(own))
        if self.team.is_many and self.step % TOLD_EVERY == 0:
            self.team.tell(statistics.median(self._own_seconds))
        self._loss = loss.detach().clone()
        self._finite &= torch.isfinite(loss) & torch.isfinite(grad_norm)

    def _next_step(self) -> None:
        """All that is done between two steps is done."""
        self.corpus.take_waited()
        self.team.take_waited()
        self.clock.next_step()
        self._own_part.begins()

    def _every(self, interval: int) -> bool:
        return interval > 0 and self.step % interval == 0

    def _evaluates(self) -> bool:
        """After the first step of the run and the last one too, so that the curve begins at its
        beginning, and what the run ends with is the loss of the weights that it ends with."""
        interval = self.sections.data.val_every_steps
        return self._every(interval) or (interval > 0 and self.step in (1, self.target))

    @property
    def train_loss(self) -> float:
        """Of the last finished step, in nats per token; NaN before the first one."""
        return math.nan if self._loss is None else float(self._loss)

    def _leave_evaluation_out(self) -> None:
        if self.team.rank == 0:
            log.warning("asked to stop: the evaluation of step %d is left out", self.step)


Trainer = Callable[[Steps], None]
