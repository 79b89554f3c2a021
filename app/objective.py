"""What is minimized, by which optimizer, and at which learning rate.

Shapes: B sequences, T tokens, V vocabulary.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.linear_loss import linear_cross_entropy
from app.model import SmolLM2
from app.sections import OptimizerSettings

log = logging.getLogger(__name__)

WSD_DECAY_SHARE = 0.2  # of a stage; SmolLM2's recipe decays over its last fifth


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of logits (B, T, V) against targets (B, T).

    In float32, or in the logits' own type if that is wider.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.flatten(0, 1).to(wide), targets.flatten())


class LossFunction:
    """Mean loss of the model on token ids (B, T + 1), in one of two ways.

    dense   the logits (B, T, V) are made, and compiled together with the rest
    fused   they are made and used part by part: `app.linear_loss`

    A compiler that fails is a reason for one line in the log, not for the end of a run.
    """

    def __init__(self, model: SmolLM2, *, compile_model: bool, fused: bool) -> None:
        self._model, self._fused = model, fused
        part: Callable[..., Tensor] = model.model if fused else self._dense
        self._eager = self._compiled = part
        if compile_model:
            self._compiled = torch.compile(part)

    def __call__(self, tokens: Tensor) -> Tensor:
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        if not self._fused:
            return self._run(inputs, targets)
        hidden = self._run(inputs).flatten(0, 1)
        return linear_cross_entropy(
            hidden, self._model.model.embed_tokens.weight, targets.flatten()
        )

    def _dense(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return next_token_loss(self._model(inputs), targets)

    def _run(self, *tensors: Tensor) -> Tensor:
        if self._compiled is not self._eager:
            from torch._dynamo.exc import TorchDynamoException
            from torch._inductor.exc import InductorError

            try:
                return self._compiled(*tensors)
            except (TorchDynamoException, InductorError) as error:
                reason = str(error).strip().splitlines()[0]
                log.warning("torch.compile failed, going on without it: %s", reason)
                self._compiled = self._eager
        return self._eager(*tensors)


def build_optimizer(
    model: nn.Module, settings: OptimizerSettings, device: torch.device
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, 2019), fused; matrices decay, norms do not."""
    parameters = list(model.parameters())
    groups = [
        {
            "params": [p for p in parameters if p.dim() >= 2],
            "weight_decay": settings.weight_decay,
        },
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        fused=device.type in ("cuda", "cpu", "mps"),
    )


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
