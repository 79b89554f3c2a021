from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.sampler import SampleOrder, global_index, permute, permute_many


@given(n=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(n: int, key: int) -> None:
    assert sorted(permute(index, n, key) for index in range(n)) == list(range(n))


@given(n=st.integers(1, 2**40), key=st.integers(0, 2**64 - 1), data=st.data())
def test_permute_stays_inside_a_large_range(n: int, key: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, n - 1))
    second = data.draw(st.integers(0, n - 1))
    places = permute(first, n, key), permute(second, n, key)
    assert all(0 <= place < n for place in places)
    assert (places[0] == places[1]) == (first == second)


def test_permute_is_the_same_for_ever() -> None:
    # A change of these numbers changes the data order of every run that is under way.
    assert [permute(index, 10, 1337) for index in range(10)] == [0, 7, 4, 8, 5, 9, 3, 2, 6, 1]


def test_permute_looks_random() -> None:
    # Of 10,000 places, those that keep their number follow a Poisson law of mean 1, and
    # neighbours are a third of the range apart on average.
    n = 10_000
    order = [permute(index, n, 7) for index in range(n)]
    assert sum(index == place for index, place in enumerate(order)) < 8
    apart = sum(abs(a - b) for a, b in pairwise(order)) / n
    assert abs(apart / n - 1 / 3) < 0.02


@pytest.mark.parametrize("index", [-1, 5])
def test_permute_refuses_what_is_outside(index: int) -> None:
    with pytest.raises(IndexError, match="outside"):
        permute(index, 5, 0)


@given(
    n=st.integers(1, 200),
    window=st.integers(1, 64),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 3),
)
def test_every_epoch_shows_every_sequence_once(n: int, window: int, seed: int, epoch: int) -> None:
    order = SampleOrder(n, seed, window)
    indices = range(epoch * n, (epoch + 1) * n)
    assert {order.epoch_of(index) for index in indices} == {epoch}
    assert sorted(map(order.sequence_at, indices)) == list(range(n))


@given(n=st.integers(1, 200), window=st.integers(1, 64), seed=st.integers(0, 2**63 - 1))
def test_the_first_epoch_needs_only_the_windows_so_far(n: int, window: int, seed: int) -> None:
    order = SampleOrder(n, seed, window)
    for index in range(n):
        assert order.sequence_at(index) // window == index // window


def test_the_order_does_not_change_when_the_end_of_the_corpus_becomes_known() -> None:
    before, after = SampleOrder(None, 3, 16), SampleOrder(16 * 5 + 7, 3, 16)
    assert [before.sequence_at(i) for i in range(80)] == [after.sequence_at(i) for i in range(80)]
    assert before.epoch_of(10**9) == 0


def test_seeds_epochs_and_windows_are_shuffled_differently() -> None:
    def shown(seed: int, start: int) -> tuple[int, ...]:
        order = SampleOrder(256, seed, 64)
        return tuple(order.sequence_at(index) % 64 for index in range(start, start + 64))

    starts = [(1, 0), (2, 0), (1, 64), (1, 256), (1, 512)]
    assert len({shown(*start) for start in starts}) == len(starts)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_step_shows_the_same_samples_for_any_number_of_processes(
    world_size: int, batch_size: int
) -> None:
    for step in range(3):
        shown = [
            global_index(
                step,
                micro_step,
                rank,
                row,
                batch_size=batch_size,
                world_size=world_size,
                global_batch_size=16,
            )
            for micro_step in range(16 // (batch_size * world_size))
            for rank in range(world_size)
            for row in range(batch_size)
        ]
        assert shown == list(range(16 * step, 16 * (step + 1)))


@given(
    n=st.integers(1, 2**40),
    key=st.integers(0, 2**64 - 1),
    places=st.lists(st.floats(0, 1, exclude_max=True), max_size=20),
)
def test_many_at_once_are_permuted_as_one_by_one(n: int, key: int, places: list[float]) -> None:
    indices = np.array([int(place * n) for place in places], dtype=np.int64)
    assert permute_many(indices, n, key).tolist() == [permute(i, n, key) for i in indices.tolist()]


@pytest.mark.parametrize("index", [-1, 5])
def test_many_at_once_refuse_what_is_outside(index: int) -> None:
    with pytest.raises(IndexError, match="outside"):
        permute_many(np.array([0, index]), 5, 0)


@given(
    n=st.one_of(st.none(), st.integers(1, 200)),
    window=st.integers(1, 64),
    first=st.integers(0, 500),
    count=st.integers(0, 300),
)
def test_a_range_of_samples_is_what_its_samples_are(
    n: int | None, window: int, first: int, count: int
) -> None:
    order = SampleOrder(n, 11, window)
    expected = [order.sequence_at(index) for index in range(first, first + count)]
    assert order.sequences(first, count).tolist() == expected


@given(window=st.integers(16, 64), stop=st.integers(1, 200), seq_len=st.integers(1, 9))
def test_the_tokens_until_a_sample_hold_all_that_is_shown_before_it(
    window: int, stop: int, seq_len: int
) -> None:
    order = SampleOrder(None, 5, window)
    tokens = order.tokens_until(stop, seq_len)
    assert (int(order.sequences(0, stop).max()) + 1) * seq_len + 1 <= tokens
    assert tokens - (stop * seq_len + 1) < window * seq_len
