"""The loss and its gradient: dense, fused, with and without z-loss."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.nn import functional as F

from app.model.loss import LossFunction, next_token_loss, z_loss
from app.model.smollm2 import SmolLM2
from app.settings.presets import PRESETS


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    logits, targets = torch.zeros(2, 3, 49_152), torch.zeros(2, 3, dtype=torch.long)
    assert next_token_loss(logits, targets).item() == pytest.approx(10.8027, abs=1e-4)


class Table(nn.Module):
    """Logits that are a row of a table: a model whose gradients are plain to see."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.logits = nn.Parameter(4 * torch.randn(11, 11, generator=generator))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits[tokens]


def test_z_loss_and_its_gradient_are_those_of_the_formula() -> None:
    logits = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    value = z_loss(logits.logsumexp(-1))
    value.backward()
    exact = logits.detach()
    log_z = exact.exp().sum(-1).log()
    assert value.item() == pytest.approx(float((log_z**2).sum() / 6), rel=1e-12)
    gradient = 2 * log_z[..., None] * exact.softmax(-1) / 6
    assert logits.grad is not None
    assert torch.allclose(logits.grad, gradient, rtol=1e-12, atol=0)


def test_z_loss_is_in_the_gradient_and_not_in_the_reported_loss() -> None:
    tokens = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
    plain, penalized = Table(), Table()
    loss = next_token_loss(plain(tokens[:, :-1]), tokens[:, 1:])
    with_z = next_token_loss(penalized(tokens[:, :-1]), tokens[:, 1:], z_loss_weight=0.1)
    assert torch.equal(loss, with_z)
    loss.backward()
    with_z.backward()
    assert plain.logits.grad is not None and penalized.logits.grad is not None
    rows = plain.logits.detach().double()[tokens[:, :-1]]
    expected = torch.zeros(11, 11, dtype=torch.float64)
    of_rows = 0.1 * 2 * rows.logsumexp(-1)[..., None] * rows.softmax(-1) / 8
    expected.index_add_(0, tokens[:, :-1].flatten(), of_rows.flatten(0, 1))
    difference = penalized.logits.grad.double() - plain.logits.grad.double()
    assert expected.abs().max() > 0.01
    assert torch.allclose(difference, expected, atol=1e-6)


def test_without_z_loss_the_gradient_is_that_of_the_cross_entropy_bit_for_bit() -> None:
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    table, reference = Table(), Table()
    next_token_loss(table(tokens[:, :-1]), tokens[:, 1:], z_loss_weight=0.0).backward()
    F.cross_entropy(reference(tokens[0, :-1]), tokens[0, 1:]).backward()
    assert table.logits.grad is not None and reference.logits.grad is not None
    assert torch.equal(table.logits.grad, reference.logits.grad)


SMALL = dataclasses.replace(PRESETS["tiny"], vocab_size=311)


def small_model() -> SmolLM2:
    model = SmolLM2(SMALL).double()
    model.initialize(4)
    return model


def loss_and_gradients(model: SmolLM2, loss_function: LossFunction) -> list[torch.Tensor]:
    tokens = torch.randint(0, 311, (3, 18), generator=torch.Generator().manual_seed(5))
    tokens[:, 7] = 5  # an end of text in the middle of each
    loss = loss_function(tokens)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("end_token", [None, 5])
@pytest.mark.parametrize("z_loss_weight", [0.0, 0.2])
def test_the_fused_loss_is_the_dense_one_through_the_whole_model(
    end_token: int | None, z_loss_weight: float
) -> None:
    model = small_model()
    fused, dense = (
        loss_and_gradients(
            model,
            LossFunction(
                model,
                compile_model=False,
                fused=fused,
                z_loss_weight=z_loss_weight,
                end_token=end_token,
            ),
        )
        for fused in (True, False)
    )
    for ours, theirs in zip(fused, dense, strict=True):
        assert (ours - theirs).abs().max() < 1e-13


@pytest.mark.parametrize("fused", [True, False])
def test_a_compiler_that_fails_costs_one_line(
    fused: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compiled(*_: Any) -> torch.Tensor:
        raise TorchDynamoException("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda _: compiled)
    model = small_model()
    failing = LossFunction(model, compile_model=True, fused=fused)
    first, second = (loss_and_gradients(model, failing) for _ in range(2))
    expected = loss_and_gradients(model, LossFunction(model, compile_model=False, fused=fused))
    assert [len(caplog.records), caplog.records[0].getMessage()] == [
        1,
        "torch.compile failed, going on without it: no C++ compiler",
    ]
    for outcome in (first, second):
        assert all(map(torch.equal, outcome, expected))
