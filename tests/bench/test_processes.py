"""What the reduction costs: the formula by hand, and a measurement of a second."""

import math

import pytest

from bench.processes import Work, foretold, measured, ring_seconds

BUCKET = 32 * 2**20


def test_a_ring_sends_almost_twice_the_bytes_and_each_bucket_waits_for_its_messages() -> None:
    assert ring_seconds(1e9, 1, 1e9, 1.0, BUCKET) == 0
    assert ring_seconds(1e9, 2, 1e9, 0, BUCKET) == pytest.approx(1.0)
    assert ring_seconds(1e9, 64, 1e9, 0, BUCKET) == pytest.approx(2 * 63 / 64)
    assert ring_seconds(2 * BUCKET, 4, math.inf, 0.5, BUCKET) == pytest.approx(6.0)


def test_a_step_that_shares_the_computing_and_adds_up_is_foretold() -> None:
    share, faster = foretold(1e9, 3.0, 2, 2e9, 0, BUCKET)
    assert [share, faster] == pytest.approx([0.25, 1.5])


@pytest.mark.parametrize("processes", [1, 2])
def test_the_parts_of_a_step_are_measured_and_are_the_whole(processes: int) -> None:
    parts = measured(Work("tiny", sequences=2, batch=1, seq_len=16, steps=2), processes)
    assert parts.computing > 0 and parts.whole > parts.computing
    assert (parts.adding_up > 0.001) == (processes == 2)
