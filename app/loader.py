"""Token sequences as micro-batches of tensors, from any step on.

Shapes: B sequences per micro-batch, T = SEQ_LEN tokens.
"""

import math
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from app.sampler import SampleOrder, global_index
from app.shards import TokenShards


@dataclass(frozen=True)
class BatchGeometry:
    """How an optimizer step is cut into micro-batches over processes."""

    batch_size: int
    global_batch_size: int
    seq_len: int
    world_size: int = 1
    rank: int = 0

    @property
    def accumulation(self) -> int:
        """Micro-steps per optimizer step."""
        return self.global_batch_size // (self.batch_size * self.world_size)

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch_size * self.seq_len


class Sequences(Dataset[Tensor]):
    """Sample number to T + 1 token ids (int64): inputs and, shifted by one, targets."""

    def __init__(self, shards: TokenShards, order: SampleOrder, seq_len: int) -> None:
        self.shards, self.order, self.seq_len = shards, order, seq_len

    def __getitem__(self, index: int) -> Tensor:
        start = self.order.sequence_at(index) * self.seq_len
        tokens = self.shards.read(start, self.seq_len + 1)
        return torch.from_numpy(tokens.astype("int64"))


class StepRange(Sampler[list[int]]):
    """Sample numbers of this process's micro-batches, for the steps [start, stop)."""

    def __init__(self, geometry: BatchGeometry, start: int, stop: int) -> None:
        self.geometry, self.start, self.stop = geometry, start, stop

    def __len__(self) -> int:
        return (self.stop - self.start) * self.geometry.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        geometry = self.geometry
        for step in range(self.start, self.stop):
            for micro_step in range(geometry.accumulation):
                yield [
                    global_index(
                        step,
                        micro_step,
                        geometry.rank,
                        row,
                        batch_size=geometry.batch_size,
                        world_size=geometry.world_size,
                        global_batch_size=geometry.global_batch_size,
                    )
                    for row in range(geometry.batch_size)
                ]


def training_loader(
    shards: TokenShards,
    order: SampleOrder,
    geometry: BatchGeometry,
    start: int,
    stop: int,
    *,
    num_workers: int,
    pin_memory: bool,
) -> DataLoader[Tensor]:
    """Micro-batches (B, T + 1) of int64 for the optimizer steps [start, stop)."""
    return DataLoader(
        Sequences(shards, order, geometry.seq_len),
        batch_sampler=StepRange(geometry, start, stop),
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        worker_init_fn=_leave_signals_to_the_job,
    )


def _leave_signals_to_the_job(worker: int) -> None:
    """Ctrl-C and some schedulers signal the whole group, and the job still needs its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@dataclass(frozen=True)
class ValidationBatches:
    """The first `max_tokens` held-out tokens as (B, T + 1) batches, always in the same order."""

    shards: TokenShards
    seq_len: int
    batch_size: int
    max_tokens: int

    @property
    def _n_sequences(self) -> int:
        return min(self.max_tokens // self.seq_len, (self.shards.n_tokens - 1) // self.seq_len)

    def __len__(self) -> int:
        return math.ceil(self._n_sequences / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, self._n_sequences, self.batch_size):
            rows = [
                self.shards.read(index * self.seq_len, self.seq_len + 1)
                for index in range(start, min(start + self.batch_size, self._n_sequences))
            ]
            yield torch.stack([torch.from_numpy(row.astype("int64")) for row in rows])
