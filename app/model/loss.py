"""What is minimized, and at which learning rate.

Shapes: B sequences, T tokens, V vocabulary.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from app.model.document_mask import Mask, block_mask, boolean_mask, document_places
from app.model.linear_loss import linear_cross_entropy
from app.model.smollm2 import SmolLM2
from app.settings.variables import OptimizerSettings

log = logging.getLogger(__name__)

WSD_DECAY_SHARE = 0.2


def next_token_loss(logits: Tensor, targets: Tensor, z_loss_weight: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats of logits (B, T, V) against targets (B, T).

    In float32, or in the logits' own type if that is wider. With `z_loss_weight` the gradient
    is that of cross-entropy + weight · z-loss; the value stays the cross-entropy alone, bit
    for bit.
    """
    wide = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.cross_entropy(wide, targets.flatten())
    if z_loss_weight == 0.0 or not torch.is_grad_enabled():
        return loss
    penalty = z_loss_weight * z_loss(wide.logsumexp(dim=-1))
    return loss + (penalty - penalty.detach())


def z_loss(log_z: Tensor) -> Tensor:
    """Mean of log² Z over positions, where log Z is the logsumexp of a position's logits.

    It keeps the normalizer of the softmax near 1 (Chowdhery et al., 2022, PaLM, section 5).
    """
    return log_z.square().mean()


class LossFunction:
    """Mean cross-entropy of the model on token ids (B, T + 1), in one of two ways.

    dense   the logits (B, T, V) are made, and compiled together with the rest
    fused   they are made and used part by part: `app.model.linear_loss`

    With `z_loss_weight` the gradient is that of cross-entropy + weight · z-loss; the value
    stays the cross-entropy alone, so that runs with and without it compare.

    With an `end_token`, the documents that it ends do not see each other. The first token of
    a document is still a target, of the end token before it: so every sequence has T targets
    with and without the mask, and a text that starts from the end token has been trained.

    A compiler that fails is a reason for one line in the log, not for the end of a run.
    """

    def __init__(
        self,
        model: SmolLM2,
        *,
        compile_model: bool,
        fused: bool = False,
        z_loss_weight: float = 0.0,
        end_token: int | None = None,
    ) -> None:
        self._model, self._fused = model, fused
        self._z_loss_weight, self._end_token = z_loss_weight, end_token
        part: Callable[..., Tensor] = model.model if fused else self._dense
        self._eager = self._compiled = part
        if compile_model:
            self._compiled = torch.compile(part)

    def __call__(self, tokens: Tensor) -> Tensor:
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        if not self._fused:
            return self._run(inputs, targets)
        return linear_cross_entropy(
            self._run(inputs).flatten(0, 1),
            self._model.model.embed_tokens.weight,
            targets.flatten(),
            self._z_loss_weight,
        )

    def _dense(
        self,
        inputs: Tensor,
        targets: Tensor,
        positions: Tensor | None = None,
        mask: Mask | None = None,
    ) -> Tensor:
        return next_token_loss(self._model(inputs, positions, mask), targets, self._z_loss_weight)

    def _run(self, inputs: Tensor, *targets: Tensor) -> Tensor:
        if self._compiled is not self._eager:
            from torch._dynamo.exc import TorchDynamoException
            from torch._inductor.exc import InductorError

            try:
                return self._compiled(
                    inputs, *targets, *self._packing(inputs, blocks=inputs.is_cuda)
                )
            except (TorchDynamoException, InductorError) as error:
                reason = str(error).strip().splitlines()[0]
                log.warning("torch.compile failed, going on without it: %s", reason)
                self._compiled = self._eager
        return self._eager(inputs, *targets, *self._packing(inputs, blocks=False))

    def _packing(self, inputs: Tensor, *, blocks: bool) -> tuple[()] | tuple[Tensor, Mask]:
        """Positions and mask; nothing where documents may see each other."""
        if self._end_token is None:
            return ()
        documents, positions = document_places(inputs, self._end_token)
        mask = block_mask(documents, compiled=True) if blocks else boolean_mask(documents)
        return positions, mask


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a function of the step.

    `horizons` are the targets of the stages, ascending: the original run's TOTAL_STEPS,
    then one for each extension. The first is never moved by an extension, so the past
    of a run keeps its learning rates.

    A run can end in its warm-up, before the peak. With EXTENSION_LR=hold the last rate that
    it reached is then the highest one of its extensions; with stretch the warm-up goes on.
    """

    settings: OptimizerSettings
    horizons: Sequence[int]

    def learning_rate(self, step: int) -> float:
        """The rate of optimizer step `step`, counted from 0."""
        settings = self.settings
        horizon = self._horizon()
        held = settings.extension_lr == "hold" and step >= horizon
        peak = self._warm_up(horizon - 1) if held else settings.learning_rate
        floor = min(peak, settings.learning_rate * settings.min_lr_ratio)
        if settings.lr_schedule == "cosine" and step >= horizon:
            return floor
        if step < settings.warmup_steps and not held:
            return self._warm_up(step)
        if settings.lr_schedule == "constant":
            return peak
        if settings.lr_schedule == "wsd":
            return self._stable_then_decay(step, peak, floor)
        progress = (step - settings.warmup_steps) / max(1, horizon - settings.warmup_steps)
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    def _horizon(self) -> int:
        """Where warm-up and cosine end: what an extension does not move, unless stretched."""
        return self.horizons[0] if self.settings.extension_lr == "hold" else self.horizons[-1]

    def _warm_up(self, step: int) -> float:
        peak, steps = self.settings.learning_rate, self.settings.warmup_steps
        return peak if step >= steps else peak * (step + 1) / steps

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
            if settings.warmup_steps > self._horizon():
                reached = self._warm_up(self._horizon() - 1)
                phrase += f" (longer than the run: the highest rate is {reached:g})"
        return phrase + (f", {self._extension()}" if len(self.horizons) > 1 else "")

    def _extension(self) -> str:
        settings, first, base = self.settings, self.horizons[0], self.horizons[-2]
        rate = self.learning_rate(base)
        if settings.extension_lr == "hold":
            return {
                "constant": f"held at {rate:g} in the extension",
                "wsd": f"stable again at {rate:g} in the extension, then decay",
                "cosine": f"held at {rate:g} after step {first} (EXTENSION_LR=hold)",
            }[settings.lr_schedule]
        goes_on = "warm-up goes on in the extension" if settings.warmup_steps > base else ""
        return {
            "constant": goes_on or "constant in the extension",
            "wsd": f"{goes_on or 'stable again in the extension'}, then decay",
            "cosine": f"stretched over {self.horizons[-1]} steps (EXTENSION_LR=stretch)",
        }[settings.lr_schedule]
