"""Choosing the next token.

Shapes: V vocabulary, T tokens so far.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from app.model import SmolLM2


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. temperature 0 is greedy; top_k 0 and top_p 1 filter nothing."""

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.95
    repetition_penalty: float = 1.0
    max_tokens: int = 100
    seed: int = 0


def filter_logits(logits: Tensor, seen: Tensor, sampling: Sampling) -> Tensor:
    """Logits (V,) after repetition penalty, temperature, top-k and nucleus filtering.

    Repetition penalty: Keskar et al., 2019 (CTRL). Nucleus: Holtzman et al., 2020; the
    token that crosses `top_p` is kept, so that at least one remains.
    """
    logits = logits.float().clone()
    if sampling.repetition_penalty != 1.0:
        past = logits[seen]
        penalty = sampling.repetition_penalty
        logits[seen] = torch.where(past > 0, past / penalty, past * penalty)
    if sampling.temperature == 0:
        return logits
    if sampling.temperature != 1:
        # The largest becomes 0 first: a tiny temperature makes the others -inf, and nothing NaN.
        logits = (logits - logits.max()) / sampling.temperature
    if 0 < sampling.top_k < logits.numel():
        threshold = logits.topk(sampling.top_k).values[-1]
        logits[logits < threshold] = -torch.inf
    if sampling.top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        logits[order[before >= sampling.top_p]] = -torch.inf
        logits[order[0]] = ordered[0]
    return logits


@torch.inference_mode()
def generate_tokens(
    model: SmolLM2, prompt: list[int], sampling: Sampling, end_token: int | None
) -> Iterator[int]:
    """Token ids after `prompt`, one by one, until `end_token` or `max_tokens`.

    Draws from a generator of its own: sampling during training leaves the run's random
    numbers alone. Beyond the model's context the oldest tokens are forgotten.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(sampling.seed)
    ids = torch.tensor(prompt, dtype=torch.long, device=device)
    context = model.config.max_position_embeddings
    for _ in range(sampling.max_tokens):
        hidden = model.model(ids[None, -context:])[0, -1]
        logits = hidden @ model.model.embed_tokens.weight.T
        logits = filter_logits(logits, ids.unique(), sampling).cpu()
        if sampling.temperature == 0:
            token = int(logits.argmax())
        else:
            token = int(torch.multinomial(logits.softmax(-1), 1, generator=generator))
        if token == end_token:
            return
        yield token
        ids = torch.cat((ids, ids.new_tensor([token])))
