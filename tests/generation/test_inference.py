"""The model with a cache gives the logits of the model without one."""

import dataclasses

import pytest
import torch

from app.generation.inference import InferenceModel
from app.model.smollm2 import SmolLM2
from app.settings.presets import PRESETS

SMALL = dataclasses.replace(
    PRESETS["smollm2-135m"],
    vocab_size=311,
    hidden_size=72,
    intermediate_size=96,
    num_hidden_layers=3,
    max_position_embeddings=64,
)


def small_model() -> SmolLM2:
    model = SmolLM2(SMALL)
    model.initialize(5)
    for name, parameter in model.named_parameters():
        if "norm" in name:  # ones would hide a norm that is left out
            torch.nn.init.uniform_(parameter, 0.5, 1.5, torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_cached_logits_equal_those_of_the_model_in_float64(packed: bool) -> None:
    model = small_model().double()
    ids = torch.randint(0, SMALL.vocab_size, (64,), generator=torch.Generator().manual_seed(2))
    expected = model(ids[None])[0]
    cached = InferenceModel(model, packed=packed)
    for n_prompt in (1, 20):
        cache = cached.new_cache(64)
        logits = [cached.prefill(ids[:n_prompt], cache)]
        logits += [cached.step(int(token), cache) for token in ids[n_prompt:]]
        assert (torch.stack(logits) - expected[n_prompt - 1 :]).abs().max() < 1e-9


@torch.no_grad()
def test_a_cache_that_is_filled_again_forgets_what_it_held() -> None:
    cached = InferenceModel(small_model())
    cache, fresh = cached.new_cache(10), cached.new_cache(10)
    cached.prefill(torch.arange(10), cache)
    again = cached.prefill(torch.arange(20, 25), cache)
    assert torch.equal(again, cached.prefill(torch.arange(20, 25), fresh))
    assert torch.equal(cached.step(3, cache), cached.step(3, fresh))


def test_shared_weights_are_those_of_the_model_and_follow_it() -> None:
    model = small_model()
    cached = InferenceModel(model)
    cache = cached.new_cache(8)
    with torch.no_grad():
        before = cached.prefill(torch.arange(4), cache)
        for parameter in model.parameters():
            parameter.mul_(1.1)
        after = cached.prefill(torch.arange(4), cache)
        expected = model(torch.arange(4)[None])[0, -1]
    assert not torch.allclose(before, after)
    assert torch.allclose(after, expected, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_steps_of_several_sequences_are_those_of_each_alone(packed: bool) -> None:
    cached = InferenceModel(small_model().double(), packed=packed)
    drawn = torch.Generator().manual_seed(2)
    prompts = [torch.randint(0, SMALL.vocab_size, (n,), generator=drawn) for n in (1, 30, 7)]
    together, alone = ([cached.new_cache(40) for _ in prompts] for _ in range(2))
    for caches in (together, alone):
        for prompt, cache in zip(prompts, caches, strict=True):
            cached.prefill(prompt, cache)
    for tokens in ([5, 6, 7], [1, 1, 2]):
        expected = [cached.step(t, cache) for t, cache in zip(tokens, alone, strict=True)]
        torch.testing.assert_close(cached.steps(tokens, together), torch.stack(expected))
    assert [cache.length for cache in together] == [3, 32, 9]
