"""Sequences of tokens as micro-batches of tensors, beginning with any step.

Shapes: B sequences per micro-batch, T = SEQ_LEN tokens.
"""

import logging
import math
import multiprocessing
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from app.console import size
from app.data.sample_order import BatchGeometry, Numbers
from app.data.shards import TokenShards
from app.errors import AppError, Unavailable

log = logging.getLogger(__name__)

_SHARED_MEMORY = Path("/dev/shm")
_LOOK_SECONDS = 1.0  # between two looks at the processes that load data
_MORE_SHARED_MEMORY = (
    "make /dev/shm larger (docker run --shm-size=1g, a memory volume in Kubernetes) or set "
    "NUM_WORKERS=0"
)

SampleFeed = Callable[[int, int], Numbers]
"""Maps (first, count) to the numbers (count,) of the sequences that the samples [first, first +
count) show. The call returns when their tokens can be read."""


class Sequences(Dataset[Tensor]):
    """Maps the number of a sequence to its T + 1 token ids (int64): T inputs, and the T targets,
    which are the inputs shifted by one."""

    def __init__(self, shards: TokenShards, seq_len: int) -> None:
        self.shards, self.seq_len = shards, seq_len

    def __getitem__(self, number: int) -> Tensor:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> Tensor:
        """A whole micro-batch (B, T + 1) at once; DataLoader looks for this name."""
        starts = np.asarray(numbers, dtype=np.int64) * self.seq_len
        rows = self.shards.read_rows(starts, self.seq_len + 1)
        return torch.from_numpy(rows.astype(np.int64))


class StepRange(Sampler[list[int]]):
    """The sequences of each micro-batch of this process, by number, for the steps [start, stop)."""

    def __init__(self, feed: SampleFeed, geometry: BatchGeometry, start: int, stop: int) -> None:
        self.feed, self.geometry, self.start, self.stop = feed, geometry, start, stop

    def __len__(self) -> int:
        return (self.stop - self.start) * self.geometry.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        """This runs in the main process, even if other processes load the tokens."""
        size = self.geometry.global_batch_size
        for step in range(self.start, self.stop):
            samples = self.feed(step * size, size).tolist()
            for micro_step in range(self.geometry.accumulation):
                yield [samples[place] for place in self.geometry.samples(0, micro_step)]


class MicroBatches(DataLoader[Tensor]):
    """Micro-batches in their order. If they are loaded by other processes and one of these is
    lost, the next batch is Unavailable."""

    waiting: Callable[[], object] | None = None

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        others = multiprocessing.active_children()
        batches = super().__iter__()
        workers = [child for child in multiprocessing.active_children() if child not in others]
        if workers:
            # PyTorch's handler would raise wherever the training is when a worker dies: in the
            # middle of an update too. Without it, a lost worker is noticed where a batch is missed.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            while (batch := self._next(batches, workers)) is not None:
                yield batch
        finally:
            for worker in workers:  # one that hangs would be waited for
                worker.kill()

    def _next(
        self, batches: Iterator[Tensor | AppError], workers: Sequence[BaseProcess]
    ) -> Tensor | None:
        """The next batch; None at the end. Raises the AppError of whoever loads it."""
        while True:
            try:
                batch = next(batches, None)
            except RuntimeError as error:
                codes = [worker.exitcode for worker in workers if worker.exitcode is not None]
                if codes:
                    raise Unavailable(_loss(codes[0])) from error
                if "timed out" not in str(error):
                    raise
                if self.waiting is not None:
                    self.waiting()
                continue
            if isinstance(batch, AppError):
                raise batch
            return batch


def _loss(exit_code: int) -> str:
    """How a worker was lost, and what to do."""
    if exit_code == -signal.SIGBUS:
        return f"a data loading process ran out of shared memory: {_MORE_SHARED_MEMORY}"
    how = f"was killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else "ended"
    return (
        f"a data loading process {how}, most likely since memory ran out: give the job more "
        "memory, or set NUM_WORKERS=0"
    )


def training_loader(
    shards: TokenShards,
    feed: SampleFeed,
    geometry: BatchGeometry,
    start: int,
    stop: int,
    *,
    num_workers: int,
    pin_memory: bool,
    waiting: Callable[[], object] | None = None,
    shared_memory: Path = _SHARED_MEMORY,
) -> MicroBatches:
    """Micro-batches (B, T + 1) of int64 for the optimizer steps [start, stop).

    `num_workers` processes load them, or this one, if `shared_memory` has no room for what
    processes pass on. The iterator raises AppErrors of `shards`, and Unavailable for a lost worker.
    While a batch does not come, it calls `waiting` every second, which may raise.
    """
    workers = _fitting(num_workers, geometry, shared_memory)
    loader = MicroBatches(
        _Told(Sequences(shards, geometry.seq_len)),
        batch_sampler=StepRange(feed, geometry, start, stop),
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        timeout=_LOOK_SECONDS if workers else 0,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals_to_the_job,
    )
    loader.waiting = waiting
    return loader


def _fitting(num_workers: int, geometry: BatchGeometry, shared_memory: Path) -> int:
    """`num_workers`, or 0 where what they pass on does not fit into `shared_memory`."""
    if num_workers == 0 or not shared_memory.is_dir():
        return num_workers
    # Each worker loads two batches ahead; one is used meanwhile, and one is on its way there.
    needed = (2 * num_workers + 2) * geometry.batch_size * (geometry.seq_len + 1) * 8
    free = shutil.disk_usage(shared_memory).free
    if needed <= free:
        return num_workers
    log.warning(
        "%s has %s left, and %d data loading processes need %s: this process loads the data; "
        "to change that, make it larger",
        shared_memory,
        size(free),
        num_workers,
        size(needed),
    )
    return 0


class _Told(Dataset[Any]):
    """`sequences`, with an AppError as a value: raised in another process, it would come here as a
    traceback in a message."""

    def __init__(self, sequences: Sequences) -> None:
        self._sequences = sequences

    def __getitems__(self, numbers: Sequence[int]) -> Tensor | AppError:
        try:
            batch = self._sequences.__getitems__(numbers)
            # Here, where a failure can be told. The thread that sends it could only print it.
            return batch.share_memory_() if get_worker_info() else batch
        except AppError as error:
            return error
        except RuntimeError as error:
            if "shared memory" not in str(error):
                raise
            return Unavailable(f"shared memory ran out: {_MORE_SHARED_MEMORY}")


def _as_it_is(batch: Any) -> Any:
    """`Sequences` gives a whole micro-batch as one tensor, so there is nothing to collate."""
    return batch


def _leave_signals_to_the_job(worker: int) -> None:
    """Ignore signals in a process that loads data.

    Ctrl-C and some schedulers signal the whole process group, and the job still needs its loading
    processes until it has stopped.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@dataclass(frozen=True)
class ValidationBatches:
    """The first `max_tokens` held-out tokens as (B, T + 1) batches, always in the same order."""

    shards: TokenShards
    seq_len: int
    batch_size: int
    max_tokens: int

    @property
    def n_sequences(self) -> int:
        return min(self.max_tokens // self.seq_len, (self.shards.n_tokens - 1) // self.seq_len)

    def __len__(self) -> int:
        return math.ceil(self.n_sequences / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, self.n_sequences, self.batch_size):
            stop = min(start + self.batch_size, self.n_sequences)
            starts = np.arange(start, stop, dtype=np.int64) * self.seq_len
            rows = self.shards.read_rows(starts, self.seq_len + 1)
            yield torch.from_numpy(rows.astype(np.int64))
