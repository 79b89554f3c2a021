"""A process that all others wait for is named, once."""

import pytest

from app.ranks.slow import LOOKS, SlowRanks


def said(slow: SlowRanks, *seconds: float, looks: int = LOOKS) -> list[str]:
    return [line for _ in range(looks) if (line := slow.news(seconds))]


def test_a_rank_that_needs_more_than_the_others_is_named_once_and_again_when_that_changes() -> None:
    slow = SlowRanks()
    assert said(slow, 1.0, 1.0, 1.25, 1.0, looks=LOOKS - 1) == []
    (line,) = said(slow, 1.0, 1.0, 1.25, 1.0, looks=1)
    assert "rank 2: 1.25 s, and the others 1 s" in line
    assert said(slow, 1.0, 1.0, 1.25, 1.0, looks=3 * LOOKS) == []
    (line,) = said(slow, 1.5, 1.0, 1.5, 1.0)
    assert "rank 0: 1.5 s" in line and "rank 2: 1.5 s" in line
    assert said(slow, 1.0, 1.0, 1.0, 1.0) == ["no rank is slow any more"]
    assert said(slow, 1.0, 1.0, 1.0, 1.0) == []


def test_a_few_long_steps_make_no_rank_slow() -> None:
    slow = SlowRanks()
    assert said(slow, 1.0, 9.0, looks=2) == []
    assert said(slow, 1.0, 1.1, looks=3) == []


@pytest.mark.parametrize(("own", "named"), [(1.19, False), (1.21, True)])
def test_of_two_the_slower_is_compared_with_the_other(own: float, named: bool) -> None:
    assert bool(said(SlowRanks(), own, 1.0)) == named
