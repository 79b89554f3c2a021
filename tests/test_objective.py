"""Loss, optimizer groups and learning rates."""

import dataclasses
import logging
from typing import Any

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from app.model import SmolLM2
from app.objective import LossFunction, Schedule, build_optimizer, next_token_loss
from app.presets import PRESETS
from app.sections import OptimizerSettings


def schedule(horizons: list[int], **changes: object) -> Schedule:
    return Schedule(OptimizerSettings(**changes), horizons)  # type: ignore[arg-type]


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    logits, targets = torch.zeros(2, 3, 49_152), torch.zeros(2, 3, dtype=torch.long)
    assert next_token_loss(logits, targets).item() == pytest.approx(10.8027, abs=1e-4)


SMALL = dataclasses.replace(PRESETS["tiny"], vocab_size=311)


def small_model() -> SmolLM2:
    model = SmolLM2(SMALL).double()
    model.initialize(4)
    return model


def loss_and_gradients(model: SmolLM2, loss_function: LossFunction) -> list[torch.Tensor]:
    tokens = torch.randint(0, 311, (3, 18), generator=torch.Generator().manual_seed(5))
    loss = loss_function(tokens)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


def test_the_fused_loss_is_the_dense_one_through_the_whole_model() -> None:
    model = small_model()
    fused, dense = (
        loss_and_gradients(model, LossFunction(model, compile_model=False, fused=fused))
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
    with caplog.at_level(logging.WARNING):
        first, second = (loss_and_gradients(model, failing) for _ in range(2))
    expected = loss_and_gradients(model, LossFunction(model, compile_model=False, fused=fused))
    assert [len(caplog.records), caplog.records[0].getMessage()] == [
        1,
        "torch.compile failed, going on without it: no C++ compiler",
    ]
    for outcome in (first, second):
        assert all(map(torch.equal, outcome, expected))


def test_norms_are_not_decayed_and_nothing_is_left_out() -> None:
    model = SmolLM2(PRESETS["tiny"])
    optimizer = build_optimizer(model, OptimizerSettings(), torch.device("cpu"))
    decayed, plain = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1 and plain["weight_decay"] == 0.0
    assert {id(p) for p in plain["params"]} == {
        id(p) for name, p in model.named_parameters() if "norm" in name
    }
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    rates = [schedule([5000]).learning_rate(step) for step in (0, 49, 99, 100)]
    assert rates == pytest.approx([3e-6, 1.5e-4, 3e-4, 3e-4])


def test_cosine_ends_at_the_floor() -> None:
    cosine = schedule([5000])
    assert cosine.learning_rate(2550) == pytest.approx((3e-4 + 3e-5) / 2)
    assert cosine.learning_rate(4999) == pytest.approx(3e-5, rel=1e-5)


def test_an_extension_holds_the_floor_and_keeps_the_past() -> None:
    before, after = schedule([5000]), schedule([5000, 5500])
    assert [before.learning_rate(s) for s in range(0, 5000, 37)] == [
        after.learning_rate(s) for s in range(0, 5000, 37)
    ]
    assert after.learning_rate(5000) == after.learning_rate(5499) == pytest.approx(3e-5)


def test_a_run_shorter_than_its_warm_up_is_not_warmed_up_further_by_an_extension() -> None:
    extended = schedule([60, 160])
    assert {extended.learning_rate(step) for step in range(60, 160)} == {3e-4 * 0.1}


def test_a_stretched_extension_follows_the_longer_cosine() -> None:
    stretched = schedule([5000, 10_000], extension_lr="stretch")
    assert stretched.learning_rate(5000) == pytest.approx(schedule([10_000]).learning_rate(5000))


def test_wsd_is_stable_then_decays_and_an_extension_is_stable_again() -> None:
    wsd = schedule([1000, 1500], lr_schedule="wsd")
    assert wsd.learning_rate(799) == pytest.approx(3e-4)
    assert wsd.learning_rate(900) == pytest.approx((3e-4 + 3e-5) / 2)
    assert wsd.learning_rate(999) < 3.2e-5
    assert wsd.learning_rate(1000) == pytest.approx(3e-4)
    assert wsd.learning_rate(1399) == pytest.approx(3e-4)
    assert wsd.learning_rate(1450) == pytest.approx((3e-4 + 3e-5) / 2)


def test_constant_stays_at_the_peak() -> None:
    constant = schedule([200], lr_schedule="constant")
    assert constant.learning_rate(150) == constant.learning_rate(10_000) == pytest.approx(3e-4)


@pytest.mark.parametrize("total", [1, 5, 100, 101])
def test_a_run_shorter_than_its_warm_up_has_rates_between_zero_and_peak(total: int) -> None:
    rates = [schedule([total]).learning_rate(step) for step in range(total + 20)]
    assert all(0 < rate <= 3e-4 for rate in rates)
