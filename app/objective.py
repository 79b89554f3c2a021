"""What is minimized, and at which learning rate.

Shapes: B sequences, T tokens, V vocabulary.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.sections import OptimizerSettings

log = logging.getLogger(__name__)

# Of a stage. SmolLM's nanotron configuration decays linearly over its last 400,000 of 2,000,000
# steps (docs/recipes.md has the source).
WSD_DECAY_SHARE = 0.2


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of logits (B, T, V) against targets (B, T), in float32."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def z_loss(log_z: Tensor) -> Tensor:
    """Mean of log² Z over positions, where log Z is the logsumexp of a position's logits.

    It keeps the normalizer of the softmax near 1 (Chowdhery et al., 2022, PaLM, section 5).
    """
    return log_z.square().mean()


def with_gradient_of(loss: Tensor, penalty: Tensor) -> Tensor:
    """The value of `loss`, bit for bit, with the gradient of loss + penalty."""
    return loss + (penalty - penalty.detach())


class LossFunction:
    """Mean cross-entropy of the model on token ids (B, T + 1), compiled where asked for.

    With `z_loss_weight` the gradient is that of cross-entropy + weight · z-loss; the value
    stays the cross-entropy alone, so that runs with and without it compare.

    A compiler that fails is a reason for one line in the log, not for the end of a run.
    """

    def __init__(
        self, model: nn.Module, *, compile_model: bool, z_loss_weight: float = 0.0
    ) -> None:
        self._model = model
        self._z_loss_weight = z_loss_weight
        self._compiled: Callable[[Tensor], Tensor] | None = (
            torch.compile(model) if compile_model else None
        )

    def __call__(self, tokens: Tensor) -> Tensor:
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        logits = self._logits(inputs)
        loss = next_token_loss(logits, targets)
        if self._z_loss_weight == 0.0 or not torch.is_grad_enabled():
            return loss
        penalty = self._z_loss_weight * z_loss(logits.float().logsumexp(dim=-1))
        return with_gradient_of(loss, penalty)

    def _logits(self, inputs: Tensor) -> Tensor:
        if self._compiled is not None:
            from torch._dynamo.exc import TorchDynamoException
            from torch._inductor.exc import InductorError

            try:
                return self._compiled(inputs)
            except (TorchDynamoException, InductorError) as error:
                reason = str(error).strip().splitlines()[0]
                log.warning("torch.compile failed, going on without it: %s", reason)
                self._compiled = None
        logits: Tensor = self._model(inputs)
        return logits


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a function of the step.

    `horizons` are the targets of the stages, ascending: the original run's TOTAL_STEPS,
    then one for each extension. The first is never moved by an extension, so the past
    of a run keeps its learning rates.
    """

    settings: OptimizerSettings
    horizons: Sequence[int]

    def learning_rate(self, step: int) -> float:
        """The rate of optimizer step `step`, counted from 0."""
        settings = self.settings
        peak, floor = settings.learning_rate, settings.learning_rate * settings.min_lr_ratio
        horizon = self.horizons[0] if settings.extension_lr == "hold" else self.horizons[-1]
        if settings.lr_schedule == "cosine" and step >= horizon:
            return floor
        if step < settings.warmup_steps:
            return peak * (step + 1) / settings.warmup_steps
        if settings.lr_schedule == "constant":
            return peak
        if settings.lr_schedule == "wsd":
            return self._stable_then_decay(step, peak, floor)
        progress = (step - settings.warmup_steps) / max(1, horizon - settings.warmup_steps)
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    def _stable_then_decay(self, step: int, peak: float, floor: float) -> float:
        """Warm-up, stable, linear decay; each extension is stable again, then decays."""
        start, end = 0, self.horizons[-1]
        for horizon in self.horizons:
            if step < horizon:
                end = horizon
                break
            start = horizon
        decay = max(1, round((end - start) * WSD_DECAY_SHARE))
        left = max(0, end - step)
        return floor + (peak - floor) * min(1.0, left / decay)

    def describe(self) -> str:
        """One phrase for the log."""
        settings = self.settings
        phrase = f"{settings.lr_schedule}, peak {settings.learning_rate:g}"
        if settings.lr_schedule != "constant":
            phrase += f", floor {settings.learning_rate * settings.min_lr_ratio:g}"
        if settings.warmup_steps:
            phrase += f", warm-up {settings.warmup_steps} steps"
            if settings.warmup_steps >= self.horizons[0]:
                phrase += " (longer than the run: the peak is never reached)"
        if len(self.horizons) > 1:
            stage = {
                "constant": "constant in the extension",
                "wsd": "stable again in the extension, then decay",
                "cosine": f"held at the floor after step {self.horizons[0]} (EXTENSION_LR=hold)"
                if settings.extension_lr == "hold"
                else f"stretched over {self.horizons[-1]} steps (EXTENSION_LR=stretch)",
            }[settings.lr_schedule]
            phrase += f", {stage}"
        return phrase
