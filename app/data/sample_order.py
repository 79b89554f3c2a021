"""Which sequence is shown when. It is computed from the number of the sample alone, so a run that
resumes has nothing to restore and nothing to skip."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Sequences in a window. Training begins when the first window is tokenized: with 2,048 tokens in
# a sequence that is one shard of 4 million tokens, a few seconds of work for two cores. A window
# mixes some 16 MB of text, which is thousands of documents.
WINDOW_SEQUENCES = 2_048

Numbers = npt.NDArray[np.int64]

_MASK = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_ROUNDS = 8


def permute(index: int, n: int, key: int) -> int:
    """Where a pseudo-random permutation of [0, n), chosen by `key`, puts `index`; in O(1).

    A balanced Feistel network over the smallest even number of bits that holds n, walked
    along its cycle until it is back inside [0, n) (Black and Rogaway 2002, "Ciphers with
    Arbitrary Finite Domains"). The domain is smaller than 4 n, so that the walk takes fewer
    than four steps on average. Raises IndexError outside [0, n).
    """
    if not 0 <= index < n:
        raise IndexError(f"{index} is outside [0, {n})")
    if n == 1:
        return 0
    half = ((n - 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    keys = [_mix(key + number * _GOLDEN_GAMMA) for number in range(1, _ROUNDS + 1)]
    while True:
        left, right = index >> half, index & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        index = left << half | right
        if index < n:
            return index


def permute_many(indices: Numbers, n: int, key: int) -> Numbers:
    """`permute` of each of (N,) indices: (N,). Raises IndexError outside [0, n)."""
    if len(indices) and not (indices.min() >= 0 and indices.max() < n):
        raise IndexError(f"{indices.min()} to {indices.max()} is outside [0, {n})")
    if n == 1:
        return np.zeros_like(indices)
    half = np.uint64(((n - 1).bit_length() + 1) // 2)
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = [np.uint64(_mix(key + number * _GOLDEN_GAMMA)) for number in range(1, _ROUNDS + 1)]
    places = indices.astype(np.uint64)
    walking = np.arange(len(places))
    while len(walking):
        left, right = places[walking] >> half, places[walking] & mask
        for round_key in keys:
            left, right = right, left ^ (_mix_many(right ^ round_key) & mask)
        places[walking] = left << half | right
        walking = walking[places[walking] >= n]
    return places.astype(np.int64)


@dataclass(frozen=True)
class SampleOrder:
    """The order of a corpus of `n_sequences`, epoch after epoch.

    In the first epoch the corpus is cut into windows of `window` sequences; the last one may be
    smaller. The windows are shown one after the other, each of them shuffled, so that training can
    begin with the beginning of the corpus. Each later epoch shuffles the whole corpus anew.

    `n_sequences` is None while not all of the corpus is tokenized. The run is in its first epoch
    then, whose order does not change when the number becomes known.
    """

    n_sequences: int | None
    seed: int
    window: int = WINDOW_SEQUENCES

    def sequences(self, first: int, count: int) -> Numbers:
        """`sequence_at` of the samples [first, first + count), at once."""
        parts = [
            start + permute_many(positions, size, key)
            for start, size, key, positions in self._blocks(first, first + count)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def tokens_until(self, stop: int, seq_len: int) -> int:
        """How many tokens the samples before `stop` need in the first epoch: those of all their
        windows, and one more as the target of the last input."""
        return -(-stop // self.window) * self.window * seq_len + 1

    def _blocks(self, first: int, stop: int) -> Iterator[tuple[int, int, int, Numbers]]:
        """The samples [first, stop) in blocks, each shuffled by one permutation: its first
        sequence, its size, its key, and the positions of the samples in it."""
        while first < stop:
            start, size, key, position = self._block_of(first)
            end = min(stop - first + position, size)
            yield start, size, key, np.arange(position, end, dtype=np.int64)
            first += end - position

    def epoch_of(self, global_index: int) -> int:
        return 0 if self.n_sequences is None else global_index // self.n_sequences

    def epochs_begun(self, start: int, stop: int) -> range:
        """The epochs after the first, counted from 0, whose first sample is in [start, stop)."""
        if self.n_sequences is None:
            return range(0)
        first = -(-start // self.n_sequences)
        return range(max(1, first), -(-stop // self.n_sequences))

    def sequence_at(self, global_index: int) -> int:
        """The number of the sequence in the corpus that sample `global_index` shows."""
        start, size, key, position = self._block_of(global_index)
        return start + permute(position, size, key)

    def _block_of(self, global_index: int) -> tuple[int, int, int, int]:
        """The block in which a sample is shuffled: its first sequence, its size and its key, and
        the position of the sample in it."""
        epoch = self.epoch_of(global_index)
        if epoch and self.n_sequences:
            key = _key(self.seed, epoch, 0)
            return 0, self.n_sequences, key, global_index % self.n_sequences
        number, position = divmod(global_index, self.window)
        start = number * self.window
        size = self.window
        if self.n_sequences is not None:
            size = min(size, self.n_sequences - start)
        return start, size, _key(self.seed, 0, number), position


def corpus_order(n_tokens: int, seq_len: int, *, complete: bool, seed: int) -> SampleOrder:
    """The order of the sequences of `seq_len` tokens, and one more as target, in `n_tokens`.

    A corpus that is not `complete` has no second epoch: it gets as long as the run needs.
    """
    return SampleOrder((n_tokens - 1) // seq_len if complete else None, seed)


def global_index(
    step: int,
    micro_step: int,
    rank: int,
    row: int,
    *,
    batch_size: int,
    world_size: int,
    global_batch_size: int,
) -> int:
    """The number of a sample, counted from the start of the run.

    However many processes share a step, it shows the same `global_batch_size` samples.
    """
    return step * global_batch_size + (micro_step * world_size + rank) * batch_size + row


def _key(seed: int, epoch: int, window: int) -> int:
    key = seed
    for part in (epoch, window):
        key = _mix(key + _GOLDEN_GAMMA) ^ part
    return key


def _mix(value: int) -> int:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014; Vigna's splitmix64.c)."""
    value &= _MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def _mix_many(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """`_mix` of each. Here 64-bit numbers overflow to what `_mix` keeps with its mask."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


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
        """Micro-steps per optimizer step, the same for each process."""
        return -(-self.global_batch_size // (self.batch_size * self.world_size))

    @property
    def share(self) -> float:
        """What the sum over all processes is multiplied by, where each has divided by its
        micro-steps, so that each sample of the step counts alike."""
        return self.accumulation * self.batch_size / self.global_batch_size

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch_size * self.seq_len

    def counts(self, micro_step: int) -> bool:
        """Whether this process has samples left in that micro-step of a step. The last one may have
        none for it: then it shows the first of the step once more, and they do not count."""
        return self._first(0, micro_step) < self.global_batch_size

    def samples(self, step: int, micro_step: int) -> range:
        """The samples that this process shows in a micro-step of `step`, which counts from 0."""
        first = self._first(step, micro_step)
        if not self.counts(micro_step):
            first = step * self.global_batch_size
        return range(first, first + self.batch_size)

    def _first(self, step: int, micro_step: int) -> int:
        return global_index(
            step,
            micro_step,
            self.rank,
            0,
            batch_size=self.batch_size,
            world_size=self.world_size,
            global_batch_size=self.global_batch_size,
        )
