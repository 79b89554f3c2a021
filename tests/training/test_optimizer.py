"""AdamW as it always was, and Muon for the matrices inside the layers."""

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from app.model.smollm2 import SmolLM2
from app.settings.presets import PRESETS
from app.settings.variables import OptimizerSettings
from app.state.snapshot import ADAMW_MOMENTS, MUON_MOMENTS, moments
from app.training.optimizer import MuonWithAdamW, build_optimizer

SMALL = dataclasses.replace(PRESETS["tiny"], vocab_size=97)
CPU = torch.device("cpu")
MUON = OptimizerSettings(optimizer="muon")


def model_with_gradients() -> SmolLM2:
    model = SmolLM2(SMALL)
    model.initialize(1)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return model


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def is_muons(name: str) -> bool:
    return ".layers." in name and "norm" not in name


def orthogonalized(update: Tensor) -> Tensor:
    """Jordan's iteration X ← aX + (bA + cA²)X with A = XXᵀ, five times, in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = update.double() if update.shape[0] <= update.shape[1] else update.double().T
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if update.shape[0] <= update.shape[1] else x.T


def test_norms_are_not_decayed_and_nothing_is_left_out() -> None:
    model = SmolLM2(PRESETS["tiny"])
    optimizer = build_optimizer(model, OptimizerSettings(), CPU)
    decayed, plain = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1 and plain["weight_decay"] == 0.0
    assert {id(p) for p in plain["params"]} == {
        id(p) for name, p in model.named_parameters() if "norm" in name
    }
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))


def test_the_default_is_torchs_fused_adamw_bit_for_bit() -> None:
    ours, theirs = model_with_gradients(), model_with_gradients()
    matrices = [p for p in theirs.parameters() if p.dim() >= 2]
    vectors = [p for p in theirs.parameters() if p.dim() < 2]
    reference = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": 0.1},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=3e-4,
        betas=(0.9, 0.999),
        eps=1e-8,
        fused=True,
    )
    optimizer = build_optimizer(ours, OptimizerSettings(), CPU)
    for _ in range(3):
        optimizer.step()
        reference.step()
    after = weights(theirs)
    assert all(torch.equal(tensor, after[name]) for name, tensor in weights(ours).items())


def test_muon_gets_the_matrices_inside_the_layers_and_adamw_the_rest() -> None:
    model = SmolLM2(SMALL)
    optimizer = build_optimizer(model, MUON, CPU)
    names = {parameter: name for name, parameter in model.named_parameters()}
    kept = {
        names[parameter]: moments(group)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert kept == {
        name: MUON_MOMENTS if is_muons(name) else ADAMW_MOMENTS for name in names.values()
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    assert len([name for name in kept if is_muons(name)]) == 4 * 7
    decays = {names[p]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays == {name: 0.0 if "norm" in name else 0.1 for name in names.values()}


def test_what_is_kept_for_a_parameter_is_what_the_format_says() -> None:
    model = model_with_gradients()
    optimizer = build_optimizer(model, MUON, CPU)
    optimizer.step()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            assert set(state) == set(moments(group))
            assert all(
                value.shape == (torch.Size([]) if moment == "step" else parameter.shape)
                for moment, value in state.items()
            )


def test_a_muon_step_is_the_published_arithmetic() -> None:
    model = model_with_gradients()
    before = weights(model)
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    settings = OptimizerSettings(optimizer="muon", learning_rate=1e-2, weight_decay=0.5)
    build_optimizer(model, settings, CPU).step()
    for name, after in weights(model).items():
        if not is_muons(name):
            continue
        momentum = 0.05 * gradients[name]
        nesterov = 0.05 * gradients[name] + 0.95 * momentum
        rate = 1e-2 * 0.2 * max(after.shape) ** 0.5
        expected = before[name].double() * (1 - 1e-2 * 0.5) - rate * orthogonalized(nesterov)
        error = (after - expected).norm() / (after - before[name]).norm()
        assert error < 0.02, (name, float(error))  # the iteration runs in bfloat16


def test_under_muon_embedding_and_norms_move_as_under_adamw() -> None:
    with_muon, with_adamw = model_with_gradients(), model_with_gradients()
    build_optimizer(with_muon, MUON, CPU).step()
    build_optimizer(with_adamw, OptimizerSettings(), CPU).step()
    expected = weights(with_adamw)
    for name, tensor in weights(with_muon).items():
        assert torch.equal(tensor, expected[name]) is not is_muons(name), name


def test_the_rate_of_the_groups_reaches_every_parameter() -> None:
    model = model_with_gradients()
    optimizer = build_optimizer(model, MUON, CPU)
    optimizer.load_state_dict(optimizer.state_dict())
    before = weights(model)
    for rate, moves in ((0.0, False), (1e-2, True)):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        after = weights(model)
        assert all(torch.equal(before[name], after[name]) is not moves for name in before)


@pytest.mark.parametrize("steps", [0, 2])
def test_a_closure_runs_once_before_the_weights_move(steps: int) -> None:
    model = model_with_gradients()
    optimizer = build_optimizer(model, MUON, CPU)
    assert isinstance(optimizer, MuonWithAdamW)
    for _ in range(steps):
        optimizer.step()
    before, seen = weights(model), []

    def closure() -> Tensor:
        seen.append(weights(model))
        optimizer.zero_grad()
        loss = model(torch.arange(16)[None]).logsumexp(-1).mean()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert isinstance(loss, Tensor) and loss.requires_grad
    assert len(seen) == 1
    assert all(torch.equal(before[name], seen[0][name]) for name in before)
    assert not any(torch.equal(before[name], tensor) for name, tensor in weights(model).items())


@pytest.mark.parametrize("optimizer_name", ["adamw", "muon"])
def test_a_state_that_was_loaded_goes_on_bit_for_bit(optimizer_name: str) -> None:
    settings = OptimizerSettings.model_validate({"optimizer": optimizer_name})

    def step(optimizer: torch.optim.Optimizer, forward: Callable[[Tensor], Tensor]) -> None:
        optimizer.zero_grad()
        forward(torch.arange(16)[None]).logsumexp(-1).mean().backward()
        optimizer.step()

    first, second = SmolLM2(SMALL), SmolLM2(SMALL)
    first.initialize(1)
    optimizer, resumed = (build_optimizer(m, settings, CPU) for m in (first, second))
    step(optimizer, first)
    step(optimizer, first)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(2):
        step(optimizer, first)
        step(resumed, second)
    expected = weights(first)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(second).items())
