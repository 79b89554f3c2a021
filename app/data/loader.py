"""Sequences of tokens as micro-batches of tensors, beginning with any step.

Shapes: B sequences per micro-batch, T = SEQ_LEN tokens.
"""

import logging
import math
import mmap
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
from torch.utils.data import DataLoader, Dataset, Sampler

from app.console import size
from app.data.sample_order import BatchGeometry, Numbers
from app.data.shards import Tokens, TokenShards
from app.errors import AppError, Unavailable

log = logging.getLogger(__name__)

_SHARED_MEMORY = Path("/dev/shm")
_LOOK_SECONDS = 1.0  # between two looks at the processes that load data

SampleFeed = Callable[[int, int], Numbers]
"""Maps (first, count) to the numbers (count,) of the sequences that the samples [first, first +
count) show. The call returns when their tokens can be read."""


Recover = Callable[[Numbers], Tokens]
"""Maps the numbers (B,) of sequences whose tokens could not be read any more, since a file was cut
or lost, to the tokens (B, T + 1). The call returns when the files were brought again."""


@dataclass(frozen=True)
class _Unread:
    """The numbers (B,) of sequences that could not be read by the process that loads them."""

    numbers: Numbers


class Sequences(Dataset[Tensor]):
    """Maps the number of a sequence to its T + 1 token ids (int64): T inputs, and the T targets,
    which are the inputs shifted by one."""

    def __init__(self, shards: TokenShards, seq_len: int) -> None:
        self.shards, self.seq_len = shards, seq_len

    def __getitem__(self, number: int) -> Tensor:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> Tensor:
        """A whole micro-batch (B, T + 1) at once; DataLoader looks for this name."""
        return _as_ids(self.read(np.asarray(numbers, dtype=np.int64)))

    def read(self, numbers: Numbers) -> Tokens:
        """(B, T + 1). Raises what `TokenShards.read` raises."""
        return self.shards.read_rows(numbers * self.seq_len, self.seq_len + 1)


def _as_ids(tokens: Tokens) -> Tensor:
    return torch.from_numpy(tokens.astype(np.int64))


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
    lost, the next batch is Unavailable.

    The processes write to memory that they share with this one, and send the number of the place.
    PyTorch would send a handle, for which it asks the sender again: who is dead or hangs by then
    cannot answer. It would also need /dev/shm, which is small in most containers.
    """

    recover: Recover
    pool: Tensor | None = None  # (places, B, T + 1)
    pins: bool = False
    waiting: Callable[[], object] | None = None
    arrived: Callable[[], object] | None = None

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
                if self.arrived is not None:
                    self.arrived()
                yield batch
        finally:
            for worker in workers:  # one that hangs would be waited for
                worker.kill()

    def _next(self, batches: Iterator[Any], workers: Sequence[BaseProcess]) -> Tensor | None:
        """The next batch; None at the end. Raises what `recover` does."""
        while True:
            try:
                loaded = next(batches, None)
            except RuntimeError as error:
                codes = [worker.exitcode for worker in workers if worker.exitcode is not None]
                if codes:
                    raise Unavailable(_loss(codes[0])) from error
                if "timed out" not in str(error):
                    raise
                if self.waiting is not None:
                    self.waiting()
                continue
            if isinstance(loaded, _Unread):  # a worker can bring no file: this process does
                return _as_ids(self.recover(loaded.numbers))
            if self.pool is None or loaded is None:
                return loaded
            place = self.pool[loaded]
            return place.pin_memory() if self.pins else place.clone()


def _loss(exit_code: int) -> str:
    """How a worker was lost, and what to do."""
    if exit_code == -signal.SIGKILL:
        return (
            "a data loading process was killed by SIGKILL, most likely since memory ran out: give "
            "the job more memory, or set NUM_WORKERS=0"
        )
    how = f"was killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else "ended"
    return f"a data loading process {how}: start again, with NUM_WORKERS=0 if it comes again"


def training_loader(
    shards: TokenShards,
    feed: SampleFeed,
    geometry: BatchGeometry,
    start: int,
    stop: int,
    *,
    num_workers: int,
    pin_memory: bool,
    recover: Recover | None = None,
    waiting: Callable[[], object] | None = None,
    arrived: Callable[[], object] | None = None,
    shared_memory: Path = _SHARED_MEMORY,
) -> MicroBatches:
    """Micro-batches (B, T + 1) of int64 for the optimizer steps [start, stop).

    `num_workers` processes load them, or this one, if `shared_memory` has no room for their locks.
    The iterator raises Unavailable for a lost worker, and for tokens that cannot be read what
    `recover` raises, or without it what `TokenShards.read` raises. While a batch does not come, it
    calls `waiting` every second, and when it is there `arrived`; both may raise.
    """
    workers = _fitting(num_workers, shared_memory)
    pool = _pool(2 * workers + 2, geometry) if workers else None  # each loads two batches ahead
    batches: Sampler[list[int]] = StepRange(feed, geometry, start, stop)
    sequences = Sequences(shards, geometry.seq_len)
    loader = MicroBatches(
        _Loaded(sequences, pool),
        batch_sampler=batches if pool is None else _Placed(batches, len(pool)),
        num_workers=workers,
        pin_memory=pin_memory and pool is None,
        persistent_workers=workers > 0,
        timeout=_LOOK_SECONDS if workers else 0,
        multiprocessing_context="fork" if workers else None,  # so that the pool is inherited
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals_to_the_job,
    )
    loader.recover = recover or sequences.read
    loader.pool, loader.pins = pool, pin_memory
    loader.waiting, loader.arrived = waiting, arrived
    return loader


def _fitting(num_workers: int, shared_memory: Path) -> int:
    """`num_workers`, or 0 where `shared_memory` has no room for their locks: a page for each."""
    if num_workers == 0 or not shared_memory.is_dir():
        return num_workers
    needed, free = (num_workers + 1) * 2**15, shutil.disk_usage(shared_memory).free
    if needed <= free:
        return num_workers
    log.warning(
        "%s has %s left, and NUM_WORKERS=%d needs %s: this process loads the data itself",
        shared_memory,
        size(free),
        num_workers,
        size(needed),
    )
    return 0


def _pool(places: int, geometry: BatchGeometry) -> Tensor:
    """Memory (places, B, T + 1) of int64 that processes share which are forked from now on."""
    shape = places, geometry.batch_size, geometry.seq_len + 1
    return torch.frombuffer(mmap.mmap(-1, math.prod(shape) * 8), dtype=torch.int64).view(shape)


class _Placed(Sampler[list[int]]):
    """`batches`, each with the number of its place in front. A place is used again when its batch
    was taken out long since."""

    def __init__(self, batches: Sampler[list[int]], places: int) -> None:
        self._batches, self._places = batches, places

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:
        for number, batch in enumerate(self._batches):
            yield [number % self._places, *batch]


class _Loaded(Dataset[Any]):
    """Micro-batches of `sequences`: themselves, or the number of the place in `pool`."""

    def __init__(self, sequences: Sequences, pool: Tensor | None) -> None:
        self._sequences, self._pool = sequences, pool

    def __getitems__(self, numbers: list[int]) -> Tensor | int | _Unread:
        wanted = numbers if self._pool is None else numbers[1:]
        try:
            batch = self._sequences.__getitems__(wanted)
        except AppError:
            return _Unread(np.asarray(wanted, dtype=np.int64))
        if self._pool is None:
            return batch
        self._pool[numbers[0]] = batch
        return numbers[0]


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
    recover: Recover | None = None

    @property
    def n_sequences(self) -> int:
        return min(self.max_tokens // self.seq_len, (self.shards.n_tokens - 1) // self.seq_len)

    def __len__(self) -> int:
        return math.ceil(self.n_sequences / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        sequences = Sequences(self.shards, self.seq_len)
        for start in range(0, self.n_sequences, self.batch_size):
            stop = min(start + self.batch_size, self.n_sequences)
            numbers = np.arange(start, stop, dtype=np.int64)
            try:
                tokens = sequences.read(numbers)
            except AppError:
                if self.recover is None:
                    raise
                tokens = self.recover(numbers)
            yield _as_ids(tokens)
