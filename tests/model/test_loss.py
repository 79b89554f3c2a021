"""Loss and learning rates."""

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
from app.settings.variables import OptimizerSettings
from app.training.schedule import Schedule


def schedule(horizons: list[int], **changes: object) -> Schedule:
    return Schedule(OptimizerSettings(**changes), horizons)  # type: ignore[arg-type]


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


@pytest.mark.parametrize("lr_schedule", ["cosine", "wsd", "constant"])
@pytest.mark.parametrize("total", [1, 5, 60, 99, 100])
@pytest.mark.parametrize("min_lr_ratio", [0.0, 0.1, 0.9, 1.0])
def test_an_extension_that_holds_is_never_above_the_last_rate_of_a_run_without_a_peak(
    lr_schedule: str, total: int, min_lr_ratio: float
) -> None:
    changes = {"lr_schedule": lr_schedule, "min_lr_ratio": min_lr_ratio}
    alone = schedule([total], **changes)
    extended = schedule([total, total + 200, total + 300], **changes)
    assert [extended.learning_rate(s) for s in range(total)] == [
        alone.learning_rate(s) for s in range(total)
    ]
    last = alone.learning_rate(total - 1)
    assert last == pytest.approx(3e-4 * total / 100)
    later = [extended.learning_rate(step) for step in range(total, total + 300)]
    assert max(later) <= last * (1 + 1e-12)
    assert min(later) >= min(last, 3e-4 * min_lr_ratio)
    if lr_schedule != "cosine":
        assert later[0] == pytest.approx(last, rel=1e-12)


@pytest.mark.parametrize("lr_schedule", ["cosine", "wsd", "constant"])
def test_a_stretched_extension_goes_on_with_the_warm_up(lr_schedule: str) -> None:
    stretched = schedule([60, 400], lr_schedule=lr_schedule, extension_lr="stretch")
    rates = [stretched.learning_rate(step) for step in range(100)]
    assert rates == pytest.approx([3e-6 * (step + 1) for step in range(100)])


@pytest.mark.parametrize(
    ("horizons", "changes", "words"),
    [
        ([5000], {}, "cosine, peak 0.0003, floor 3e-05, warm-up 100 steps"),
        ([100], {"lr_schedule": "constant"}, "constant, peak 0.0003, warm-up 100 steps"),
        ([60], {}, "warm-up 100 steps (longer than the run: the highest rate is 0.00018)"),
        ([5000, 5500], {}, "100 steps, held at 3e-05 after step 5000 (EXTENSION_LR=hold)"),
        ([5, 500], {}, "held at 1.5e-05 after step 5 (EXTENSION_LR=hold)"),
        ([60, 500], {"lr_schedule": "constant"}, "held at 0.00018 in the extension"),
        ([60, 500], {"lr_schedule": "wsd"}, "stable again at 0.00018 in the extension, then decay"),
        ([500, 900], {"lr_schedule": "wsd"}, "stable again at 0.0003 in the extension, then decay"),
        (
            [60, 80],
            {"extension_lr": "stretch"},
            "rate is 0.00024), stretched over 80 steps (EXTENSION_LR=stretch)",
        ),
        (
            [60, 500],
            {"extension_lr": "stretch", "lr_schedule": "wsd"},
            "100 steps, warm-up goes on in the extension, then decay",
        ),
        (
            [60, 200, 500],
            {"extension_lr": "stretch", "lr_schedule": "constant"},
            "100 steps, constant in the extension",
        ),
    ],
)
def test_a_schedule_says_what_it_does(
    horizons: list[int], changes: dict[str, object], words: str
) -> None:
    assert schedule(horizons, **changes).describe().endswith(words)


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


def test_wsd_to_zero_is_the_published_schedule() -> None:
    published = {"warmup_steps": 2_000, "learning_rate": 3e-3, "min_lr_ratio": 0.0}
    wsd = schedule([2_000_000], lr_schedule="wsd", **published)
    steps = [1_999, 1_600_000, 1_700_000, 1_800_000, 1_900_000, 2_000_000]
    rates = [wsd.learning_rate(step) for step in steps]
    assert rates == pytest.approx([3e-3, 3e-3, 2.25e-3, 1.5e-3, 0.75e-3, 0.0])


def test_constant_stays_at_the_peak() -> None:
    constant = schedule([200], lr_schedule="constant")
    assert constant.learning_rate(150) == constant.learning_rate(10_000) == pytest.approx(3e-4)


@pytest.mark.parametrize("total", [1, 5, 100, 101])
def test_a_run_shorter_than_its_warm_up_has_rates_between_zero_and_peak(total: int) -> None:
    rates = [schedule([total]).learning_rate(step) for step in range(total + 20)]
    assert all(0 < rate <= 3e-4 for rate in rates)
