"""The learning rate of each step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from app.settings.variables import OptimizerSettings

WSD_DECAY_SHARE = 0.2  # of the steps of a stage


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a function of the step.

    `horizons` are the targets of the stages, ascending: the original run's TOTAL_STEPS, then one
    for each extension. An extension never moves the first one, so that the steps which a run has
    made keep their learning rates.

    A run can end in its warm-up, before the peak. With EXTENSION_LR=hold the rate that it reached
    last is then the highest rate of its extensions; with stretch the warm-up goes on.
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
        """Where warm-up and cosine end. An extension moves it with EXTENSION_LR=stretch only."""
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
