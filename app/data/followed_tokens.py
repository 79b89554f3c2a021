"""The tokens of a job that another process on this machine makes, as its neighbours read them.

One process for each DATA_DIR finds, fetches and makes shards, see `preparation`. Its neighbours
read the index that it writes, and wait for the files.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from app.data.shard_index import NamedShard, ShardIndex, Split, read_index
from app.data.shards import TokenShards, verify
from app.data.token_need import PrepareProgress, Waiting
from app.data.tokenizer import TokenizerFiles
from app.errors import AppError, Damaged, Unavailable

_POLL_SECONDS = 0.2
_MENDING_SECONDS = 300.0  # in which the other process makes or fetches a shard again


class FollowedTokens:
    """The shards in `directory`, with an index of this `source` (fingerprint) and tokenizer."""

    def __init__(self, directory: Path, source: str, tokenizer: TokenizerFiles) -> None:
        self.directory, self.tokenizer = directory, tokenizer
        self.index = read_index(directory, source, tokenizer.fingerprint)
        self._verified: set[str] = set()

    @property
    def train(self) -> TokenShards:
        return TokenShards(self.directory, "train", self.index)

    @property
    def validation(self) -> TokenShards:
        return TokenShards(self.directory, "validation", self.index)

    def wait_for(self, split: Split, n_tokens: int, waiting: Waiting) -> ShardIndex:
        """The index, as soon as it has `n_tokens` tokens of `split`, or is complete."""
        while not (self.index.complete or self.index.n_tokens(split) >= n_tokens):
            with suppress(Damaged):  # left to the process that writes it
                index = read_index(self.directory, self.index.source, self.index.tokenizer)
                if index.continues(self.index):
                    self.index = index
                    continue
            self._wait(waiting)
        return self.index

    def require(
        self, split: Split, starts: npt.NDArray[np.int64], length: int, waiting: Waiting
    ) -> None:
        """Wait until the shards with tokens [start, start + length) of each start are whole.

        Raises Unavailable for one that stays as it is.
        """
        for named in self.index.shards_with(split, starts, length):
            if named.name not in self._verified:
                self._verify(named, waiting)
                self._verified.add(named.name)

    def bring_again(
        self, split: Split, starts: npt.NDArray[np.int64], length: int, waiting: Waiting
    ) -> None:
        """As `require`, for tokens that could not be read any more."""
        for named in self.index.shards_with(split, starts, length):
            self._verify(named, waiting)

    def close(self) -> None:
        """There is nothing to end."""

    def _verify(
        self, named: NamedShard, waiting: Waiting, now: Callable[[], float] = time.monotonic
    ) -> None:
        began = now()
        while True:
            try:
                verify(self.directory, named)
            except AppError as error:
                if now() - began > _MENDING_SECONDS:
                    raise Unavailable(
                        f"{error}, and rank 0 has not brought it again: start again"
                    ) from error
                self._wait(waiting)
            else:
                return

    def _wait(self, waiting: Waiting) -> None:
        time.sleep(_POLL_SECONDS)
        waiting(PrepareProgress(tokens=self.index.n_tokens("train")))
