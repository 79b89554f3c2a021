"""Validation: the mean loss over held-out tokens."""

import time
from collections.abc import Callable
from itertools import islice

import torch

from app.data.loader import ValidationBatches
from app.heartbeat import beat
from app.model.loss import LossFunction
from app.model.smollm2 import SmolLM2
from app.ranks.team import Team
from app.training.compute import Compute


@torch.no_grad()
def evaluate(
    model: SmolLM2,
    loss_function: LossFunction,
    batches: ValidationBatches,
    compute: Compute,
    goes_on: Callable[[float], bool],
    team: Team,
) -> float | None:
    """Mean loss in nats per token over `batches` of (B, T + 1) tokens; every token counts alike.

    The last batch may be smaller than the others, so another batch size changes only the rounding.

    Each process of the `team` computes its share of the batches, and all get the same number.

    Before each batch `goes_on` is called with the seconds that the rest will probably take. If it
    says no to one process, the evaluation ends there, and the result is None. Raises LostPeer.
    """
    total, n_sequences, given_up, started = 0.0, 0, 0, time.monotonic()
    share = len(range(team.rank, len(batches), team.size))
    model.eval()
    try:
        for done, batch in enumerate(islice(batches, team.rank, None, team.size)):
            per_batch = (time.monotonic() - started) / max(1, done)
            if not goes_on(per_batch * (share - done)):
                given_up = 1
                break
            with compute.autocast():
                loss = loss_function(batch.to(compute.device))
            total += float(loss) * batch.shape[0]
            n_sequences += batch.shape[0]
            beat()
    finally:
        model.train()
    total, sequences, given_up_by = team.sum([total, n_sequences, given_up])
    return None if given_up_by else total / sequences
