"""Choosing the next token.

Shapes: V vocabulary, N candidates.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.generation.inference import InferenceModel

_KEPT_SHARE = 0.75  # of a full context
_AT_ONCE = 8  # texts that grow together


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


class _Text:
    """A text that grows: the tokens so far, what the model remembers of them, and what follows."""

    def __init__(self, model: InferenceModel, prompt: list[int], sampling: Sampling) -> None:
        self._model, self._sampling = model, sampling
        self._context = model.config.max_position_embeddings
        self._generator = torch.Generator().manual_seed(sampling.seed)
        longest = len(prompt) + sampling.max_tokens
        self.cache = model.new_cache(min(self._context, longest))
        self._ids = torch.zeros(longest, dtype=torch.long, device=model.device)
        self._ids[: len(prompt)] = torch.tensor(prompt)
        self._length = len(prompt)
        self.logits = model.prefill(self._ids[: len(prompt)][-self._context :], self.cache)

    def draw(self) -> int:
        """The next token, which `append` takes."""
        return _draw(self.logits, self._ids[: self._length], self._sampling, self._generator)

    def append(self, token: int) -> bool:
        """Whether there is room for another one after it."""
        self._ids[self._length] = token
        self._length += 1
        return self._length < len(self._ids)

    def make_room(self) -> bool:
        """Where the model's context is full, forget the oldest quarter of it.

        The positions of the other tokens change by that, so they are read again: `logits` are new
        then, and the result is True.
        """
        if self.cache.length < self.cache.capacity:
            return False
        kept = int(self._context * _KEPT_SHARE)
        self.logits = self._model.prefill(self._ids[: self._length][-kept:], self.cache)
        return True


@torch.inference_mode()
def generate_tokens(
    model: InferenceModel, prompt: list[int], sampling: Sampling, end_token: int | None
) -> Iterator[int]:
    """Token ids after `prompt`, one by one, until `end_token` or `max_tokens`.

    Draws from a generator of its own, so that a sample during training leaves the run's random
    numbers alone.
    """
    text = _Text(model, prompt, sampling)
    while (token := text.draw()) != end_token:
        yield token
        if not text.append(token):
            return
        if not text.make_room():
            text.logits = model.step(token, text.cache)


@torch.inference_mode()
def generate_together(
    model: InferenceModel,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    end_token: int | None,
    takes: Callable[[int, int], bool],
    at_once: int = _AT_ONCE,
) -> Iterator[int]:
    """The index of each prompt whose text has ended, in the order of their ends.

    `takes` is given the index of a prompt and the next token of its text, and says whether it wants
    more of them. `at_once` texts grow together: each draws from a generator of its own, so that it
    is the text that `generate_tokens` gives, but for what the order of additions rounds.
    """
    waiting = deque(enumerate(prompts))
    growing: list[tuple[int, _Text]] = []
    while waiting or growing:
        while waiting and len(growing) < at_once:
            index, prompt = waiting.popleft()
            growing.append((index, _Text(model, prompt, sampling)))
        going: list[tuple[int, _Text]] = []
        stepping: list[tuple[int, _Text]] = []  # the token, and whose it is
        for index, text in growing:
            token = text.draw()
            if token == end_token or not takes(index, token) or not text.append(token):
                yield index
                continue
            going.append((index, text))
            if not text.make_room():
                stepping.append((token, text))
        _step(model, stepping)
        growing = going


def _step(model: InferenceModel, texts: Sequence[tuple[int, _Text]]) -> None:
    """Go on by a token with each of these texts."""
    if len(texts) == 1:  # reads packed weights faster
        token, text = texts[0]
        text.logits = model.step(token, text.cache)
    elif texts:
        caches = [text.cache for _, text in texts]
        logits = model.steps([token for token, _ in texts], caches)
        for row, (_, text) in enumerate(texts):
            text.logits = logits[row]


def _draw(logits: Tensor, seen: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw on the CPU, so that a seed gives the same text on every device."""
    ids, values = candidates(logits, seen, sampling)
    if len(ids) == 1:
        return int(ids)
    ids_and_values = torch.stack((ids.double(), values.double())).cpu()
    index = torch.multinomial(ids_and_values[1].softmax(-1), 1, generator=generator)
    return int(ids_and_values[0, index])
