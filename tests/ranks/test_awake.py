"""A clock for waiting, which a pause of the whole process does not move."""

from app.ranks.awake import AwakeClock


def test_a_pause_counts_for_no_more_than_one_look() -> None:
    times = iter([100.0, 100.5, 101.0, 901.0, 901.5])
    clock = AwakeClock(most=1.0, now=lambda: next(times))
    assert [clock() for _ in range(4)] == [0.5, 1.0, 2.0, 2.5]
