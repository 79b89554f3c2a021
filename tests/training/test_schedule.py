"""Learning rates: the schedule of a run, and what an extension makes of it."""

import pytest

from app.settings.variables import OptimizerSettings
from app.training.schedule import Schedule


def schedule(horizons: list[int], **changes: object) -> Schedule:
    return Schedule(OptimizerSettings(**changes), horizons)  # type: ignore[arg-type]


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
