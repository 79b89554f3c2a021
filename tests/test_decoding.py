"""Filters and draws of the next token."""

import dataclasses

import torch

from app.decoding import Sampling, filter_logits, generate_tokens
from app.model import SmolLM2
from app.presets import PRESETS

LOGITS = torch.tensor([1.0, 4.0, 2.0, 3.0, -1.0])
PLAIN = Sampling(temperature=1.0, top_k=0, top_p=1.0)
NOTHING = torch.tensor([], dtype=torch.long)


def kept(sampling: Sampling) -> list[int]:
    return torch.isfinite(filter_logits(LOGITS, NOTHING, sampling)).nonzero().flatten().tolist()


def small_model() -> SmolLM2:
    model = SmolLM2(dataclasses.replace(PRESETS["tiny"], vocab_size=50))
    model.initialize(3)
    return model.eval()


def test_nothing_is_filtered_unless_asked_for() -> None:
    assert kept(PLAIN) == [0, 1, 2, 3, 4]
    same = filter_logits(LOGITS, NOTHING, PLAIN)
    assert torch.allclose(same.softmax(-1), LOGITS.softmax(-1))


def test_top_k_keeps_the_k_largest() -> None:
    assert kept(dataclasses.replace(PLAIN, top_k=2)) == [1, 3]
    assert kept(dataclasses.replace(PLAIN, top_k=99)) == [0, 1, 2, 3, 4]


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    # Probabilities: 0.032, 0.642, 0.087, 0.236, 0.004.
    assert kept(dataclasses.replace(PLAIN, top_p=0.64)) == [1]
    assert kept(dataclasses.replace(PLAIN, top_p=0.65)) == [1, 3]
    assert kept(dataclasses.replace(PLAIN, top_p=0.0)) == [1]


def test_temperature_divides_the_logits() -> None:
    warm = filter_logits(LOGITS, NOTHING, dataclasses.replace(PLAIN, temperature=2.0))
    assert torch.allclose(warm.softmax(-1), (LOGITS / 2).softmax(-1))


def test_the_smallest_temperature_is_greedy_and_no_number_is_lost() -> None:
    cold = filter_logits(LOGITS, NOTHING, dataclasses.replace(PLAIN, temperature=1e-40))
    assert cold.softmax(-1).tolist() == [0, 1, 0, 0, 0]


def test_repetition_penalty_lowers_what_was_seen_whatever_its_sign() -> None:
    seen = torch.tensor([1, 4])
    punished = filter_logits(LOGITS, seen, dataclasses.replace(PLAIN, repetition_penalty=2.0))
    assert punished.tolist() == [1.0, 2.0, 2.0, 3.0, -2.0]


def test_the_same_seed_draws_the_same_text_and_leaves_the_global_one_alone() -> None:
    model = small_model()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    drawn = [list(generate_tokens(model, [1, 2], Sampling(seed=s), None)) for s in (5, 5, 6)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_greedy_equals_the_argmax_of_the_whole_context() -> None:
    model = small_model()
    tokens = list(generate_tokens(model, [7, 8, 9], Sampling(temperature=0, max_tokens=5), None))
    ids = [7, 8, 9]
    for token in tokens:
        assert token == int(model(torch.tensor([ids]))[0, -1].argmax())
        ids.append(token)


def test_it_stops_at_the_end_token_and_at_max_tokens() -> None:
    model = small_model()
    greedy = Sampling(temperature=0, max_tokens=4)
    tokens = list(generate_tokens(model, [1], greedy, None))
    assert len(tokens) == 4
    assert list(generate_tokens(model, [1], greedy, tokens[0])) == []


def test_a_prompt_longer_than_the_context_forgets_the_oldest() -> None:
    model = small_model()
    prompt = [i % 50 for i in range(model.config.max_position_embeddings + 40)]
    assert len(list(generate_tokens(model, prompt, Sampling(max_tokens=3), None))) == 3
