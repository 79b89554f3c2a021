"""Micro-batches from other processes, which may be lost, stuck, or without shared memory."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from app.data.loader import training_loader
from app.data.sample_order import BatchGeometry
from app.data.shards import TokenShards
from app.errors import Unavailable
from tests.support.sample_tokens import write_counting_shards

GEOMETRY = BatchGeometry(batch_size=2, global_batch_size=2, seq_len=4)


@pytest.fixture
def shards(tmp_path: Path) -> TokenShards:
    return TokenShards(tmp_path, "train", write_counting_shards(tmp_path))


def batches(
    shards: TokenShards, geometry: BatchGeometry = GEOMETRY, **more: Any
) -> Iterator[Tensor]:
    """Ten steps of the sequences in their order."""
    loader = training_loader(
        shards,
        lambda first, count: np.arange(first, first + count),
        geometry,
        0,
        10,
        num_workers=more.pop("num_workers", 1),
        pin_memory=False,
        **more,
    )
    return iter(loader)


def signalled(number: signal.Signals) -> None:
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, number)


def test_a_killed_process_is_missed_where_its_batch_is_and_nowhere_else(
    shards: TokenShards,
) -> None:
    coming = batches(shards)
    next(coming)
    signalled(signal.SIGKILL)
    with pytest.raises(Unavailable, match=r"killed by SIGKILL.* memory.*NUM_WORKERS=0"):
        list(coming)


def test_a_bus_error_in_a_process_names_the_shared_memory(shards: TokenShards) -> None:
    coming = batches(shards)
    next(coming)
    signalled(signal.SIGBUS)
    with pytest.raises(Unavailable, match=r"shared memory: make /dev/shm larger"):
        list(coming)


def test_what_waits_for_a_process_that_hangs_can_give_up_and_the_process_is_gone(
    shards: TokenShards,
) -> None:
    class Enough(Exception):
        pass

    def give_up() -> None:
        raise Enough

    coming = batches(shards, waiting=give_up)
    next(coming)
    signalled(signal.SIGSTOP)
    (worker,) = multiprocessing.active_children()
    with pytest.raises(Enough):
        list(coming)
    worker.join()
    assert worker.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_whoever_loads_comes_as_it_was_raised(
    num_workers: int, shards: TokenShards, tmp_path: Path
) -> None:
    failing = FailingShards(tmp_path, "train", write_counting_shards(tmp_path))
    with pytest.raises(Unavailable) as caught:
        next(batches(failing, num_workers=num_workers))
    assert str(caught.value) == "the volume is gone"


class FailingShards(TokenShards):
    def read_rows(self, starts: Any, length: int) -> Any:
        raise Unavailable("the volume is gone")


def test_without_room_in_shared_memory_this_process_loads_the_data(
    shards: TokenShards, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    large = BatchGeometry(batch_size=2**40, global_batch_size=2**40, seq_len=4)
    before = multiprocessing.active_children()
    loader = training_loader(
        shards, feed_nothing, large, 0, 1, num_workers=2, pin_memory=False, shared_memory=tmp_path
    )
    assert loader.num_workers == 0
    assert str(tmp_path) in caplog.text and "2 data loading processes need" in caplog.text
    assert multiprocessing.active_children() == before


def feed_nothing(first: int, count: int) -> Any:
    return np.empty(0, dtype=np.int64)
