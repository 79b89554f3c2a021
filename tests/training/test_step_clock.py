"""Seconds of a step and tokens per second, by a clock that the tests move."""

import pytest

from app.training.step_clock import StepClock


class Hand:
    """The hand of the clock, in seconds."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def hand() -> Hand:
    return Hand()


def test_a_step_is_timed_without_what_was_waited_and_smoothed(hand: Hand) -> None:
    clock = StepClock(0, hand)
    hand.now += 50  # compiling, restoring: before the start
    clock.start()
    assert clock.step_seconds == 0
    hand.now += 12
    clock.step_done(waited=10)
    assert clock.step_seconds == pytest.approx(2)
    hand.now += 30  # an evaluation
    clock.next_step()
    hand.now += 4
    clock.step_done(waited=0)
    assert clock.step_seconds == pytest.approx(2.2)
    assert clock.seconds == pytest.approx(96)


def test_the_median_is_of_the_newest_steps_and_does_not_know_the_one_that_was_compiled(
    hand: Hand,
) -> None:
    clock = StepClock(0, hand)
    for seconds in (90, 2, 3, 2, 60):
        clock.next_step()
        hand.now += seconds
        clock.step_done(waited=0)
    assert clock.median_seconds == pytest.approx(3)
    for _ in range(31):
        clock.next_step()
        hand.now += 7
        clock.step_done(waited=0)
    assert clock.median_seconds == pytest.approx(7)


def test_time_aside_does_not_count_in_tokens_per_second(hand: Hand) -> None:
    clock = StepClock(20, hand)
    clock.start()
    hand.now += 4
    with clock.aside():
        hand.now += 100
    assert clock.row(22, 1000) == pytest.approx(500)
    hand.now += 2
    assert clock.row(23, 1000) == pytest.approx(500)
