"""Choosing the next token.

Shapes: V vocabulary, N candidates.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from app.generation.inference import InferenceModel

_KEPT_SHARE = 0.75  # of a full context


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. temperature 0 is greedy; top_k 0 and top_p 1 filter nothing."""

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.95
    repetition_penalty: float = 1.0
    max_tokens: int = 100
    seed: int = 0


def candidates(logits: Tensor, seen: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Token ids (N,) that can be next and their logits (N,), the likeliest first.

    From logits (V,) by repetition penalty for the ids `seen` (any number, in any order),
    temperature, top-k and nucleus filtering; a candidate that is filtered out has -inf.

    Repetition penalty: Keskar et al., 2019 (CTRL). Nucleus: Holtzman et al., 2020; the
    token that crosses `top_p` is kept, so that at least one remains.
    """
    logits = logits.float()
    if sampling.repetition_penalty != 1.0:
        past, penalty = logits[seen], sampling.repetition_penalty
        logits = logits.index_put((seen,), torch.where(past > 0, past / penalty, past * penalty))
    if sampling.temperature == 0:
        best = logits.max(dim=0, keepdim=True)
        return best.indices, best.values
    if 0 < sampling.top_k < logits.numel():
        values, ids = logits.topk(sampling.top_k)
    else:
        values, ids = logits.sort(descending=True)
    # With the largest at 0, a tiny temperature turns the others into -inf, and none into NaN.
    values = (values - values[0]) / sampling.temperature
    if sampling.top_p < 1:
        probabilities = values.softmax(-1)
        outside = probabilities.cumsum(-1) - probabilities >= sampling.top_p
        outside[0] = False
        values = values.masked_fill(outside, -torch.inf)
    return ids, values


@torch.inference_mode()
def generate_tokens(
    model: InferenceModel, prompt: list[int], sampling: Sampling, end_token: int | None
) -> Iterator[int]:
    """Token ids after `prompt`, one by one, until `end_token` or `max_tokens`.

    Draws from a generator of its own, so that a sample during training leaves the run's random
    numbers alone. When the model's context is full, the oldest quarter of it is forgotten. The
    positions of the other tokens change by that, so they are read again.
    """
    context = model.config.max_position_embeddings
    generator = torch.Generator().manual_seed(sampling.seed)
    cache = model.new_cache(min(context, len(prompt) + sampling.max_tokens))
    ids = torch.zeros(len(prompt) + sampling.max_tokens, dtype=torch.long, device=model.device)
    ids[: len(prompt)] = torch.tensor(prompt)
    logits = model.prefill(ids[: len(prompt)][-context:], cache)
    for length in range(len(prompt) + 1, len(ids) + 1):
        token = _draw(logits, ids[: length - 1], sampling, generator)
        if token == end_token:
            return
        yield token
        if length == len(ids):
            return
        ids[length - 1] = token
        if cache.length < cache.capacity:
            logits = model.step(token, cache)
        else:
            logits = model.prefill(ids[:length][-int(context * _KEPT_SHARE) :], cache)


def _draw(logits: Tensor, seen: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw on the CPU, so that a seed gives the same text on every device."""
    ids, values = candidates(logits, seen, sampling)
    if len(ids) == 1:
        return int(ids)
    ids_and_values = torch.stack((ids.double(), values.double())).cpu()
    index = torch.multinomial(ids_and_values[1].softmax(-1), 1, generator=generator)
    return int(ids_and_values[0, index])
