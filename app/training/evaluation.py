"""Validation: the mean loss over held-out tokens."""

import time
from collections.abc import Callable

import torch

from app.data.loader import ValidationBatches
from app.heartbeat import beat
from app.model.loss import LossFunction
from app.model.smollm2 import SmolLM2
from app.training.compute import Compute


@torch.no_grad()
def evaluate(
    model: SmolLM2,
    loss_function: LossFunction,
    batches: ValidationBatches,
    compute: Compute,
    goes_on: Callable[[float], bool],
) -> float | None:
    """Mean loss in nats per token over `batches` of (B, T + 1) tokens; every token counts alike.

    The last batch may be smaller than the others, so another batch size changes only the rounding.

    Before each batch `goes_on` is called with the seconds that the rest will probably take. If it
    says no, the evaluation ends there, and the result is None.
    """
    total, n_sequences, started = 0.0, 0, time.monotonic()
    model.eval()
    try:
        for done, batch in enumerate(batches):
            per_batch = (time.monotonic() - started) / max(1, done)
            if not goes_on(per_batch * (len(batches) - done)):
                return None
            with compute.autocast():
                loss = loss_function(batch.to(compute.device))
            total += float(loss) * batch.shape[0]
            n_sequences += batch.shape[0]
            beat()
    finally:
        model.train()
    return total / n_sequences
