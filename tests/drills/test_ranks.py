"""The same samples in the same order on any number of processes, also when it changes."""

from pathlib import Path

import pytest

from app.data.loader import training_loader
from app.data.sample_order import BatchGeometry, global_index
from tests.support.ranks import (
    GLOBAL_BATCH_SIZE,
    N_SEQUENCES,
    ORDER,
    SEQ_LEN,
    open_tokens,
    write_tokens,
)

STEPS = 20  # three epochs and a bit, and epochs that begin inside a step


def expected(start: int, stop: int) -> list[list[int]]:
    """The sequences of each step, by arithmetic alone."""
    return [
        [
            ORDER.sequence_at(index)
            for index in range(step * GLOBAL_BATCH_SIZE, (step + 1) * GLOBAL_BATCH_SIZE)
        ]
        for step in range(start, stop)
    ]


def merged(ranks: list[list[list[list[int]]]]) -> list[list[int]]:
    """Steps of micro-steps of rows, by rank, put together as one process shows them."""
    return [
        [row for micro in zip(*micro_steps, strict=True) for rows in micro for row in rows]
        for micro_steps in zip(*ranks, strict=True)
    ]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    write_tokens(folder)
    return folder


def loaded(
    folder: Path, geometry: BatchGeometry, start: int, stop: int, num_workers: int
) -> list[list[list[int]]]:
    """What one rank's loader shows: by step, micro-step and row, the sequence's number.

    A micro-step that does not count, since the rank has no samples left in it, has no rows.
    """
    loader = training_loader(
        open_tokens(folder),
        ORDER.sequences,
        geometry,
        start,
        stop,
        num_workers=num_workers,
        pin_memory=False,
    )
    rows = [batch[:, 0].tolist() for batch in loader]
    a = geometry.accumulation
    counted = [row if geometry.counts(number % a) else [] for number, row in enumerate(rows)]
    return [counted[number : number + a] for number in range(0, len(rows), a)]


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7, 8])
def test_every_number_of_processes_and_workers_shows_the_same_order(
    world_size: int, num_workers: int, tokens: Path
) -> None:
    ranks = [
        loaded(
            tokens,
            BatchGeometry(1, GLOBAL_BATCH_SIZE, SEQ_LEN, world_size, rank),
            0,
            STEPS,
            num_workers,
        )
        for rank in range(world_size)
    ]
    assert merged(ranks) == expected(0, STEPS)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_number_of_processes_may_change_at_any_step(batch_size: int, tokens: Path) -> None:
    shown = []
    for start, stop, world_size in ((0, 3, 4), (3, 4, 1), (4, 11, 3), (11, STEPS, 2)):
        ranks = [
            loaded(
                tokens,
                BatchGeometry(batch_size, GLOBAL_BATCH_SIZE, SEQ_LEN, world_size, rank),
                start,
                stop,
                num_workers=0,
            )
            for rank in range(world_size)
        ]
        shown += merged(ranks)
    assert shown == expected(0, STEPS)


def test_an_epoch_of_the_loader_shows_each_sequence_once(tokens: Path) -> None:
    geometry = BatchGeometry(1, GLOBAL_BATCH_SIZE, SEQ_LEN)
    steps = merged([loaded(tokens, geometry, 0, STEPS, num_workers=0)])
    shown = [number for step in steps for number in step]
    epochs = [shown[start : start + N_SEQUENCES] for start in range(0, 150, N_SEQUENCES)]
    assert all(sorted(epoch) == list(range(N_SEQUENCES)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_sample_number_is_its_step_and_place_and_nothing_else() -> None:
    """The formula itself, so that a change of it is seen."""
    place = {"batch_size": 2, "world_size": 4, "global_batch_size": 16}
    assert global_index(0, 0, 0, 0, **place) == 0
    assert global_index(10**9, 1, 3, 1, **place) == 16 * 10**9 + (4 + 3) * 2 + 1
