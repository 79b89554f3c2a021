"""The model is LlamaForCausalLM, to the last bit that float64 can tell."""

import dataclasses

import pytest
import torch

from app.model.smollm2 import SmolLM2, flops_per_token
from app.settings.presets import PRESETS
from bench.reference import llama

SMALL = dataclasses.replace(
    PRESETS["smollm2-135m"],
    vocab_size=311,
    hidden_size=72,
    intermediate_size=96,
    num_hidden_layers=3,
    rope_theta=12_345.0,
)


def test_the_135m_preset_has_exactly_134_515_008_parameters() -> None:
    with torch.device("meta"):
        model = SmolLM2(PRESETS["smollm2-135m"])
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert PRESETS["smollm2-135m"].parameter_count == 134_515_008


@pytest.mark.parametrize("name", PRESETS)
def test_the_breakdown_counts_what_the_module_holds(name: str) -> None:
    with torch.device("meta"):
        model = SmolLM2(PRESETS[name])
    assert sum(p.numel() for p in model.parameters()) == PRESETS[name].parameter_count


def test_the_first_weights_are_the_same_wherever_the_model_lies() -> None:
    """Drawn on the CPU and copied: another device's generator would draw others."""
    here, there = SmolLM2(SMALL), SmolLM2(SMALL).to(torch.bfloat16)
    here.initialize(5)
    there.initialize(5)
    for a, b in zip(here.parameters(), there.parameters(), strict=True):
        assert torch.equal(a.to(torch.bfloat16), b)


def test_k_and_v_are_576_by_192() -> None:
    with torch.device("meta"):
        weights = SmolLM2(PRESETS["smollm2-135m"]).state_dict()
    shapes = {
        name: tuple(weights[f"model.layers.0.self_attn.{name}.weight"].shape)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    }
    assert shapes == {
        "q_proj": (576, 576),
        "k_proj": (192, 576),
        "v_proj": (192, 576),
        "o_proj": (576, 576),
    }


def test_parameter_names_are_those_of_transformers() -> None:
    ours = SmolLM2(SMALL).state_dict()
    theirs = set(llama(SMALL, ours).state_dict()) - {"lm_head.weight"}
    assert set(ours) == theirs


@pytest.mark.parametrize(("by_hand", "tolerance"), [(False, 1e-9), (True, 1e-7)])
def test_logits_and_gradients_equal_transformers_in_float64(
    by_hand: bool, tolerance: float
) -> None:
    """But for the norms, which Llama computes in float32: backwards in another order by hand."""
    torch.manual_seed(5)
    ours = SmolLM2(SMALL, fused_layers=by_hand).double()
    ours.initialize(5)
    theirs = llama(SMALL, ours.state_dict()).double()
    tokens = torch.randint(0, SMALL.vocab_size, (2, 65))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    our_logits, their_logits = ours(inputs), theirs(inputs).logits
    assert (our_logits - their_logits).abs().max() < 1e-9

    for logits in (our_logits, their_logits):
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        reference = gradients[name].grad
        assert parameter.grad is not None and reference is not None
        assert (parameter.grad - reference).abs().max() < tolerance, name


def test_no_position_sees_a_later_token() -> None:
    model = SmolLM2(SMALL)
    model.initialize(1)
    tokens = torch.arange(20)[None]
    changed = tokens.clone()
    changed[0, 10:] += 100
    difference = (model(tokens) - model(changed)).abs().amax(-1)[0]
    assert difference[:10].max() == 0
    assert difference[10:].min() > 0


def test_gradient_checkpointing_changes_no_gradient() -> None:
    tokens = torch.randint(0, SMALL.vocab_size, (2, 33), generator=torch.Generator().manual_seed(2))
    gradients = []
    for checkpointing in (False, True):
        model = SmolLM2(SMALL, gradient_checkpointing=checkpointing)
        model.initialize(3)
        model.train()
        model(tokens).logsumexp(-1).mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, plain in gradients[0].items():
        recomputed = gradients[1][name]
        assert plain is not None and recomputed is not None
        assert torch.equal(plain, recomputed), name


def test_initial_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = SmolLM2(SMALL)
    first.initialize(7)
    torch.manual_seed(2)
    second = SmolLM2(SMALL)
    second.initialize(7)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    embedding = first.model.embed_tokens.weight
    assert embedding.std().item() == pytest.approx(1 / 24, rel=0.03)


def test_an_empty_model_is_filled_by_initialize_alone_and_draws_no_random_number() -> None:
    expected = SmolLM2(SMALL)
    expected.initialize(7)
    before = torch.get_rng_state()
    model = SmolLM2.empty(SMALL, torch.device("cpu"), gradient_checkpointing=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.model.gradient_checkpointing
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    model.initialize(7)
    ours, theirs = model.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_scaled_first_weights_differ_in_the_matrices_that_write_to_the_residual_stream() -> None:
    normal, scaled = SmolLM2(SMALL), SmolLM2(SMALL)
    normal.initialize(7)
    scaled.initialize(7, "scaled")
    for (name, a), b in zip(normal.named_parameters(), scaled.parameters(), strict=True):
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            assert torch.allclose(b, a / (2 * SMALL.num_hidden_layers) ** 0.5, rtol=1e-6), name
        else:
            assert torch.equal(a, b), name


def test_a_token_of_135m_costs_1_019_gflop_at_2048() -> None:
    config = PRESETS["smollm2-135m"]
    assert flops_per_token(config, 2048) == pytest.approx(1.019e9, rel=1e-3)
    assert flops_per_token(config, 2048, causal=False) == pytest.approx(1.232e9, rel=1e-3)
