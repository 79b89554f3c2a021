"""The fused loss is the dense one, in value and in every gradient."""

import pytest
import torch
from torch.nn import functional as F

from app.model.linear_loss import linear_cross_entropy
from app.model.loss import next_token_loss

N, D, V = 37, 24, 301


def problem(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(N, D, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=dtype).requires_grad_()
    return hidden, weight, torch.randint(0, V, (N,), generator=generator)


def dense(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    loss = F.cross_entropy(
        F.linear(hidden, weight).to(torch.promote_types(hidden.dtype, torch.float32)), targets
    )
    return (loss, *torch.autograd.grad(3 * loss, (hidden, weight)))


@pytest.mark.parametrize("rows", [1, 7, N, 10 * N])
def test_value_and_gradients_are_those_of_the_dense_loss(rows: int) -> None:
    hidden, weight, targets = problem(torch.float64)
    loss = linear_cross_entropy(hidden, weight, targets, most_logits=rows * V)
    grads = torch.autograd.grad(3 * loss, (hidden, weight))
    for ours, theirs in zip((loss, *grads), dense(hidden, weight, targets), strict=True):
        assert ours.dtype == torch.float64
        assert (ours - theirs).abs().max() < 1e-13


def test_z_loss_is_in_the_gradients_and_not_in_the_value() -> None:
    hidden, weight, targets = problem(torch.float64)
    plain = linear_cross_entropy(hidden, weight, targets)
    fused = linear_cross_entropy(hidden, weight, targets, z_loss_weight=0.3)
    dense = next_token_loss(F.linear(hidden, weight)[None], targets[None], z_loss_weight=0.3)
    assert torch.equal(fused, plain)
    ours, theirs = (torch.autograd.grad(loss, (hidden, weight)) for loss in (fused, dense))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() < 1e-13
    assert (ours[1] - torch.autograd.grad(plain, weight)[0]).abs().max() > 1e-3


def test_under_autocast_it_is_as_close_to_float64_as_the_dense_loss() -> None:
    exact = dense(*problem(torch.float64))
    hidden, weight, targets = problem(torch.float64)
    hidden = hidden.detach().float().requires_grad_()
    weight = weight.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets)
        theirs = dense(hidden, weight, targets)
    ours = (loss, *torch.autograd.grad(3 * loss, (hidden, weight)))
    assert loss.dtype == torch.float32
    for fused, plain, right in zip(ours, theirs, exact, strict=True):
        assert fused.dtype == torch.float32
        error = (fused.double() - right).norm()
        assert error < 1.5 * (plain.double() - right).norm() + 1e-6


def test_huge_logits_do_not_overflow() -> None:
    hidden, weight, targets = problem(torch.float32)
    loss = linear_cross_entropy(hidden * 1e4, weight, targets)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(grad).all() for grad in torch.autograd.grad(loss, (hidden, weight)))


def test_without_gradients_only_the_value_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = problem(torch.float64)

    def multiplied(*_: object, **__: object) -> None:
        raise AssertionError("a gradient that nobody asked for")

    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(torch, "mm", multiplied)
        patch.setattr(torch.Tensor, "addmm_", multiplied)
        loss = linear_cross_entropy(hidden, weight, targets)
    assert loss.grad_fn is None
    assert loss == linear_cross_entropy(hidden, weight, targets)


def test_only_the_gradients_that_are_asked_for_are_made() -> None:
    hidden, weight, targets = problem(torch.float64)
    loss = linear_cross_entropy(hidden.detach(), weight, targets)
    loss.backward()
    assert weight.grad is not None and hidden.grad is None
