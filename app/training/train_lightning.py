"""The PyTorch Lightning trainer.

Lightning runs the loop: accumulation, precision, device. Its own checkpoints, loggers
and progress bar are switched off; the attempt does that work for both trainers.
"""

import logging
import warnings
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import (  # type: ignore[attr-defined]
    LightningEnvironment,
)
from torch import Tensor
from torch.utils.data import DataLoader

from app.training.steps import Steps


class LanguageModel(pl.LightningModule):
    """The attempt's model in the form that Lightning asks for."""

    def __init__(self, attempt: Steps) -> None:
        super().__init__()
        self.model = attempt.model
        self._attempt = attempt
        self._step_loss = torch.zeros(())
        self._grad_norm = torch.zeros(())

    def train_dataloader(self) -> DataLoader[Tensor]:
        return self._attempt.loader()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._attempt.optimizer

    def on_train_start(self) -> None:
        self._step_loss = torch.zeros((), device=self.device)
        self._attempt.begin()

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        if batch_idx % self._attempt.geometry.accumulation == 0:
            self._attempt.learning_rate()

    def training_step(self, tokens: Tensor, batch_idx: int) -> Tensor:
        """Loss of one micro-batch (B, T + 1); Lightning divides it by the accumulation."""
        loss = self._attempt.loss(tokens)
        self._step_loss += loss.detach() / self._attempt.geometry.accumulation
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Said here and not at the batch's end: where another process is lost, the weights are still
        # those of a whole step.
        self._attempt.micro_step_done()
        self._attempt.reduce_gradients(self._step_loss)
        clip = self._attempt.sections.optimizer.grad_clip or torch.inf
        self._grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self._attempt.update_begins()

    def on_train_batch_end(self, outputs: Any, batch: Tensor, batch_idx: int) -> None:
        if (batch_idx + 1) % self._attempt.geometry.accumulation:
            stop = self._attempt.micro_step_done()
        else:
            self._attempt.optimizer.zero_grad()  # a snapshot can use the memory of the gradients
            stop = self._attempt.step_done(self._step_loss, self._grad_norm)
            self._step_loss.zero_()
        if stop:
            self.trainer.should_stop = True


def train(attempt: Steps) -> None:
    """Make optimizer steps from attempt.step to attempt.target, or until asked to stop.

    Raises KeyboardInterrupt, out of which Lightning makes a SystemExit.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    trainer = pl.Trainer(
        accelerator=attempt.compute.device.type,
        # One device: the team's processes share a step by `reduce_gradients`, and not by DDP.
        devices=[torch.cuda.current_device()] if attempt.compute.device.type == "cuda" else 1,
        precision=attempt.compute.precision,
        max_epochs=1,
        max_steps=attempt.target - attempt.step,
        accumulate_grad_batches=attempt.geometry.accumulation,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        use_distributed_sampler=False,
        plugins=[LightningEnvironment()],
    )
    try:
        trainer.fit(LanguageModel(attempt))
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        attempt.stop.install()  # Lightning ignores SIGINT from here on
        raise KeyboardInterrupt from end
