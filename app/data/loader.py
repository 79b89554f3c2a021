"""Sequences of tokens as micro-batches of tensors, beginning with any step.

Shapes: B sequences per micro-batch, T = SEQ_LEN tokens.
"""

import math
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from app.data.sample_order import BatchGeometry, Numbers
from app.data.shards import Tokens, TokenShards
from app.errors import AppError

SampleFeed = Callable[[int, int], Numbers]
"""Maps (first, count) to the numbers (count,) of the sequences that the samples [first, first +
count) show. The call returns when their tokens can be read."""


Recover = Callable[[Numbers], Tokens]
"""Maps the numbers (B,) of sequences whose tokens could not be read any more, since a file was cut
or lost, to the tokens (B, T + 1). The call returns when the files were brought again."""


@dataclass(frozen=True)
class Unread:
    """The numbers (B,) of sequences that could not be read by the process that loads them."""

    numbers: Numbers


class Sequences(Dataset[Tensor | Unread]):
    """Maps the number of a sequence to its T + 1 token ids (int64): T inputs, and the T targets,
    which are the inputs shifted by one."""

    def __init__(self, shards: TokenShards, seq_len: int) -> None:
        self.shards, self.seq_len = shards, seq_len

    def __getitems__(self, numbers: Sequence[int]) -> Tensor | Unread:
        """A whole micro-batch (B, T + 1) at once; DataLoader looks for this name."""
        wanted = np.asarray(numbers, dtype=np.int64)
        try:
            return _as_ids(self.read(wanted))
        except AppError:
            return Unread(wanted)  # a worker can bring no file: the main process does

    def read(self, numbers: Numbers) -> Tokens:
        """(B, T + 1). Raises what `TokenShards.read` raises."""
        return self.shards.read_rows(numbers * self.seq_len, self.seq_len + 1)


class TokenLoader(DataLoader[Tensor]):
    """A DataLoader that recovers in this process what a worker could not read."""

    recover: Recover

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        return map(self._whole, super().__iter__())

    def _whole(self, batch: Any) -> Tensor:
        whole: Tensor = _as_ids(self.recover(batch.numbers)) if type(batch) is Unread else batch
        return whole


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
) -> TokenLoader:
    """Micro-batches (B, T + 1) of int64 for the optimizer steps [start, stop).

    Without `recover`, tokens that cannot be read raise what `TokenShards.read` raises.
    """
    sequences = Sequences(shards, geometry.seq_len)
    loader = TokenLoader(
        sequences,  # type: ignore[arg-type]
        batch_sampler=StepRange(feed, geometry, start, stop),
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals_to_the_job,
    )
    loader.recover = recover or sequences.read
    return loader


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
