"""Micro-batches from other processes, which may be lost, stuck, or without shared memory."""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from app.data.loader import training_loader
from app.data.sample_order import BatchGeometry, Numbers
from app.data.shards import TokenShards
from app.errors import Unavailable
from tests.support.sample_tokens import write_counting_shards

GEOMETRY = BatchGeometry(batch_size=2, global_batch_size=2, seq_len=4)


@pytest.fixture
def shards(tmp_path: Path) -> TokenShards:
    return TokenShards(tmp_path, "train", write_counting_shards(tmp_path))


def in_order(first: int, count: int) -> Numbers:
    return np.arange(first, first + count, dtype=np.int64)


def batches(shards: TokenShards, **more: Any) -> Iterator[Tensor]:
    """Ten steps of the sequences in their order."""
    options = {"num_workers": 1, "pin_memory": False, **more}
    return iter(training_loader(shards, in_order, GEOMETRY, 0, 10, **options))


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


def test_the_death_of_a_process_is_told_by_its_signal(shards: TokenShards) -> None:
    coming = batches(shards)
    next(coming)
    signalled(signal.SIGBUS)
    with pytest.raises(Unavailable, match=r"killed by SIGBUS: start again.*NUM_WORKERS=0"):
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


def test_without_room_for_the_locks_this_process_loads_the_data(
    shards: TokenShards, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    free = shutil.disk_usage(tmp_path).free
    loader = training_loader(
        shards,
        in_order,
        GEOMETRY,
        0,
        10,
        num_workers=free >> 14,
        pin_memory=False,
        shared_memory=tmp_path,
    )
    assert loader.num_workers == 0
    assert str(tmp_path) in caplog.text and "NUM_WORKERS=" in caplog.text


def test_batches_of_other_processes_stay_as_they_are_when_their_place_is_used_again(
    shards: TokenShards,
) -> None:
    for num_workers in (1, 2):
        kept = list(batches(shards, num_workers=num_workers))
        assert [batch.tolist() for batch in kept] == [
            batch.tolist() for batch in batches(shards, num_workers=0)
        ]
