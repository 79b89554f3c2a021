"""Filters and draws of the next token."""

import dataclasses
from typing import Any

import pytest
import torch

from app.generation.decoding import Sampling, candidates, generate_together, generate_tokens
from app.generation.inference import InferenceModel, KeyValueCache
from app.model.smollm2 import SmolLM2
from app.settings.presets import PRESETS

LOGITS = torch.tensor([1.0, 4.0, 2.0, 3.0, -1.0])
PLAIN = Sampling(temperature=1.0, top_k=0, top_p=1.0)
SIZES: dict[str, Any] = {"vocab_size": 50, "max_position_embeddings": 24}
NOTHING = torch.tensor([], dtype=torch.long)


def kept(sampling: Sampling) -> list[int]:
    ids, logits = candidates(LOGITS, NOTHING, sampling)
    return sorted(ids[torch.isfinite(logits)].tolist())


def probabilities(sampling: Sampling, seen: torch.Tensor = NOTHING) -> torch.Tensor:
    """Of every token, in the order of their ids."""
    ids, logits = candidates(LOGITS, seen, sampling)
    return torch.zeros(len(LOGITS)).index_put((ids,), logits.softmax(-1))


def small_model() -> SmolLM2:
    model = SmolLM2(dataclasses.replace(PRESETS["tiny"], **SIZES))
    model.initialize(3)
    return model


def test_nothing_is_filtered_unless_asked_for() -> None:
    assert kept(PLAIN) == [0, 1, 2, 3, 4]
    assert torch.allclose(probabilities(PLAIN), LOGITS.softmax(-1))


def test_top_k_keeps_the_k_largest() -> None:
    assert kept(dataclasses.replace(PLAIN, top_k=2)) == [1, 3]
    assert kept(dataclasses.replace(PLAIN, top_k=99)) == [0, 1, 2, 3, 4]


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    # Probabilities: 0.032, 0.642, 0.087, 0.236, 0.004.
    assert kept(dataclasses.replace(PLAIN, top_p=0.64)) == [1]
    assert kept(dataclasses.replace(PLAIN, top_p=0.65)) == [1, 3]
    assert kept(dataclasses.replace(PLAIN, top_p=0.0)) == [1]


def test_temperature_divides_the_logits() -> None:
    warm = probabilities(dataclasses.replace(PLAIN, temperature=2.0))
    assert torch.allclose(warm, (LOGITS / 2).softmax(-1))


def test_the_smallest_temperature_is_greedy_and_no_number_is_lost() -> None:
    cold = probabilities(dataclasses.replace(PLAIN, temperature=1e-40))
    assert cold.tolist() == [0, 1, 0, 0, 0]


def test_repetition_penalty_lowers_what_was_seen_whatever_its_sign() -> None:
    seen = torch.tensor([1, 4, 1])  # twice is punished once
    punished = probabilities(dataclasses.replace(PLAIN, repetition_penalty=2.0), seen)
    assert torch.allclose(punished, torch.tensor([1.0, 2.0, 2.0, 3.0, -2.0]).softmax(-1))
    assert LOGITS.tolist() == [1.0, 4.0, 2.0, 3.0, -1.0]


def uncached(model: SmolLM2, prompt: list[int], sampling: Sampling) -> list[int]:
    """The same draws, with the whole context computed again for each token."""
    generator = torch.Generator().manual_seed(sampling.seed)
    ids = list(prompt)
    for _ in range(sampling.max_tokens):
        logits = model(torch.tensor([ids]))[0, -1]
        tokens, values = candidates(logits, torch.tensor(ids), sampling)
        index = torch.multinomial(values.double().softmax(-1), 1, generator=generator)
        ids.append(int(tokens[index]))
    return ids[len(prompt) :]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=4, max_tokens=12),
        Sampling(temperature=0, max_tokens=12),
        Sampling(temperature=0, repetition_penalty=50.0, max_tokens=12),
        Sampling(top_k=0, top_p=0.9, repetition_penalty=1.2, max_tokens=12),
        Sampling(top_k=0, top_p=1.0, max_tokens=12),
    ],
    ids=str,
)
@torch.no_grad()
def test_the_tokens_are_those_of_the_model_without_a_cache(sampling: Sampling) -> None:
    model = small_model().double()
    for packed in (False, True):
        cached = InferenceModel(model, packed=packed)
        assert list(generate_tokens(cached, [7, 8, 9], sampling, None)) == uncached(
            model, [7, 8, 9], sampling
        )


def test_the_same_seed_draws_the_same_text_and_leaves_the_global_one_alone() -> None:
    model = InferenceModel(small_model())
    torch.manual_seed(1)
    before = torch.get_rng_state()
    drawn = [
        list(generate_tokens(model, [1, 2], Sampling(seed=s, max_tokens=12), None))
        for s in (5, 5, 6)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_it_stops_at_the_end_token_and_at_max_tokens() -> None:
    model = InferenceModel(small_model())
    greedy = Sampling(temperature=0, repetition_penalty=50.0, max_tokens=4)
    tokens = list(generate_tokens(model, [1], greedy, None))
    assert len(set(tokens)) == len(tokens) == 4
    assert list(generate_tokens(model, [1], greedy, tokens[0])) == []
    assert list(generate_tokens(model, [1], greedy, tokens[2])) == tokens[:2]


@torch.no_grad()
def test_beyond_the_context_a_quarter_is_forgotten_and_the_rest_read_again() -> None:
    model = small_model().double()
    context = model.config.max_position_embeddings
    greedy = Sampling(temperature=0, repetition_penalty=50.0, max_tokens=context)
    ids = [i % 50 for i in range(context + 5)]
    length = len(ids)
    window = context
    for token in generate_tokens(InferenceModel(model), ids[:], greedy, None):
        expected, _ = candidates(
            model(torch.tensor([ids[-window:]]))[0, -1], torch.tensor(ids), greedy
        )
        assert token == int(expected), f"after {len(ids) - length} tokens"
        ids.append(token)
        window = context * 3 // 4 if window == context else window + 1
    assert len(ids) == length + context


def test_the_context_is_read_once_and_then_token_by_token() -> None:
    calls = []

    class Noting(InferenceModel):
        def prefill(self, ids: torch.Tensor, cache: KeyValueCache) -> torch.Tensor:
            calls.append(len(ids))
            return super().prefill(ids, cache)

        def step(self, token: int, cache: KeyValueCache) -> torch.Tensor:
            calls.append(1)
            return super().step(token, cache)

    model = Noting(small_model())
    assert len(list(generate_tokens(model, [1, 2], Sampling(max_tokens=3), None))) == 3
    assert calls == [2, 1, 1]


def test_a_sample_in_mixed_precision_leaves_the_model_ready_to_train() -> None:
    model = small_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = list(generate_tokens(InferenceModel(model), [1], Sampling(max_tokens=8), None))
    assert len(tokens) == 8
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=60, seed=3), Sampling(temperature=0)])
def test_texts_that_grow_together_are_those_that_each_grows_to_alone(sampling: Sampling) -> None:
    """Prompts and texts are shorter and longer than the context, and some are not wanted whole."""
    model = InferenceModel(small_model().double())
    prompts = [[1], [2, 3] * 9, [4] * 40, [5, 6, 7], [8]]
    texts: list[list[int]] = [[] for _ in prompts]

    def takes(index: int, token: int) -> bool:
        texts[index].append(token)
        return len(texts[index]) < (index + 1) * 7

    alone = [list(generate_tokens(model, prompt, sampling, 9)) for prompt in prompts]
    ended = list(generate_together(model, prompts, sampling, 9, takes, at_once=3))
    assert sorted(ended) == [0, 1, 2, 3, 4]
    assert texts == [tokens[: (n + 1) * 7] for n, tokens in enumerate(alone)]
