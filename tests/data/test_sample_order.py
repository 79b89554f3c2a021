import sys
from types import FrameType

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.data.sample_order import SampleOrder, corpus_order, global_index, permute, permute_many


@settings(deadline=None)  # 3,000 places take 0.1 s, and more on a busy machine
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


def test_permute_is_a_bijection_for_every_small_number() -> None:
    for n in range(1, 301):
        assert len({permute(index, n, n) for index in range(n)}) == n


# What follows compares `permute` with permutations drawn uniformly at random. The keys are
# fixed, so a test passes always or never. Each bound is five standard deviations of the
# statistic under uniform drawing: a right function had a chance of about one in a million
# to fail one of them, and a lopsided one has next to none to pass.
SIGMAS = 5.0


@pytest.mark.parametrize("n", [2, 3, 5, 8, 16, 37])
def test_every_place_is_as_likely_as_any_other(n: int) -> None:
    keys = 1000
    places = np.array([[permute(i, n, key) for i in range(n)] for key in range(keys)])
    counts = np.stack([np.bincount(places[:, i], minlength=n) for i in range(n)])
    # The covariance of the n × n counts of random permutation matrices is keys / (n - 1)
    # times a projection of rank (n - 1)²: this sum follows chi-square with that many degrees.
    degrees = (n - 1) ** 2
    statistic = (n - 1) / keys * ((counts - keys / n) ** 2).sum()
    assert statistic < degrees + SIGMAS * (2 * degrees) ** 0.5


@pytest.mark.parametrize("n", [5, 16, 37])
def test_what_follows_a_place_is_as_likely_as_any_other(n: int) -> None:
    keys = 1000
    places = np.array([[permute(i, n, key) for i in range(n)] for key in range(keys)])
    jumps = (places[:, 1:] - places[:, :-1]) % n  # never 0
    # One jump of each key, so that the counts are independent: n - 1 equally likely kinds.
    counts = np.bincount(jumps[np.arange(keys), np.arange(keys) % (n - 1)], minlength=n)[1:]
    expected, degrees = keys / (n - 1), n - 2
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < degrees + SIGMAS * (2 * degrees) ** 0.5


def test_one_sequence_in_a_permutation_keeps_its_place_on_average() -> None:
    # The number of fixed points has mean 1 and variance 1, whatever n is.
    keys, n = 400, 100
    fixed = sum(permute(i, n, key) == i for key in range(keys) for i in range(n))
    assert abs(fixed - keys) < SIGMAS * keys**0.5


@pytest.mark.parametrize("n", [1000, 8192])
def test_neighbours_are_not_correlated(n: int) -> None:
    # The correlation of a random order with itself, shifted, has mean -1 / (n - 1), which is
    # far below its deviation of 1 / √n.
    order = np.array([permute(i, n, 7) for i in range(n)])
    for shift in (1, 2, 3, 4, 8, 16, 64, n // 2):
        correlation = np.corrcoef(order, np.roll(order, shift))[0, 1]
        assert abs(correlation) < SIGMAS / n**0.5, shift
    assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < SIGMAS / n**0.5


def shown(order: SampleOrder, epoch: int) -> npt.NDArray[np.int64]:
    """The first epoch's first window, or the same number of samples of a later epoch."""
    assert order.n_sequences is not None
    start = epoch * order.n_sequences
    return np.array([order.sequence_at(start + i) for i in range(order.window)])


def assert_unrelated(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> None:
    n = len(first)
    # Places that two random orders share follow a Poisson law of mean 1: 12 or more of them
    # have a chance of 8e-10.
    assert (first == second).sum() < 12
    assert abs(np.corrcoef(first, second)[0, 1]) < SIGMAS / n**0.5


@pytest.mark.parametrize("epoch", [0, 1])
def test_each_bit_of_the_seed_gives_an_unrelated_order(epoch: int) -> None:
    plain = shown(SampleOrder(512, 1337, 512), epoch)
    for bit in range(63):
        assert_unrelated(plain, shown(SampleOrder(512, 1337 ^ 1 << bit, 512), epoch))


def test_epochs_are_unrelated_orders() -> None:
    orders = [shown(SampleOrder(512, 1337, 512), epoch) for epoch in range(12)]
    for number, second in enumerate(orders):
        for first in orders[:number]:
            assert_unrelated(first, second)


def test_windows_are_unrelated_orders() -> None:
    order, window = SampleOrder(None, 1337, 512), 512
    orders = [
        np.array([order.sequence_at(number * window + i) - number * window for i in range(window)])
        for number in range(12)
    ]
    for number, second in enumerate(orders):
        for first in orders[:number]:
            assert_unrelated(first, second)


def mixes(order: SampleOrder, index: int) -> int:
    """How often a place is mixed until the sequence of a sample is found: what it costs."""
    calls = 0

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code.co_name == "_mix"

    sys.setprofile(count)
    try:
        order.sequence_at(index)
    finally:
        sys.setprofile(None)
    return calls


def test_a_sample_far_out_costs_as_much_as_the_first() -> None:
    # A walk takes at most four steps on average (see `permute`), so one of 40 steps has a
    # chance of (3/4)^40 = 1e-5. A step mixes eight times, and so do the round keys.
    most = 8 + 8 * 40 + 2
    for order in (SampleOrder(None, 1337), SampleOrder(123_457, 1337), SampleOrder(10**12, 1337)):
        for index in (0, 10**6, 10**9, 10**15):
            if order.n_sequences is None or index < 10**15:
                assert 0 < mixes(order, index) <= most


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


@given(n=st.integers(1, 50), start=st.integers(0, 200), length=st.integers(0, 120))
def test_an_epoch_begins_where_its_number_changes(n: int, start: int, length: int) -> None:
    order = SampleOrder(n, 3)
    turns = [
        i for i in range(start, start + length) if i and order.epoch_of(i - 1) < order.epoch_of(i)
    ]
    assert [epoch * n for epoch in order.epochs_begun(start, start + length)] == turns


def test_no_epoch_begins_while_the_corpus_goes_on() -> None:
    assert not SampleOrder(None, 3).epochs_begun(0, 10**9)


def test_a_sequence_needs_one_token_more_for_its_last_target() -> None:
    assert corpus_order(64, 16, complete=True, seed=1) == SampleOrder(3, 1)
    assert corpus_order(65, 16, complete=True, seed=1) == SampleOrder(4, 1)
    assert corpus_order(65, 16, complete=False, seed=1) == SampleOrder(None, 1)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
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
