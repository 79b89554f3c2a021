"""The tokens of a run as training reads them: in order, and waited for where they are not there.

Shapes: B sequences per micro-batch, T = SEQ_LEN tokens.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from app.data.loader import ValidationBatches
from app.data.sample_order import Numbers, SampleOrder, corpus_order
from app.data.shard_index import ShardIndex, Split
from app.data.shards import Tokens, TokenShards
from app.data.token_need import PrepareProgress, Waiting
from app.data.token_progress import TokenProgress
from app.data.tokenizer import TokenizerFiles

log = logging.getLogger(__name__)

_WORTH_A_LINE = 0.5  # seconds: a shorter wait is not logged


class OutOfData(Exception):
    """The next tokens do not come: for the reason in `__cause__`, or because the run is asked
    to stop."""


class TokenFolder(Protocol):
    """The shards of DATASET on this machine: a `Preparation`, or what another process makes."""

    @property
    def directory(self) -> Path: ...
    @property
    def index(self) -> ShardIndex: ...
    @property
    def tokenizer(self) -> TokenizerFiles: ...
    @property
    def train(self) -> TokenShards: ...
    @property
    def validation(self) -> TokenShards: ...
    def wait_for(self, split: Split, n_tokens: int, waiting: Waiting, /) -> ShardIndex: ...
    def require(self, split: Split, starts: Numbers, length: int, waiting: Waiting, /) -> None: ...
    def bring_again(
        self, split: Split, starts: Numbers, length: int, waiting: Waiting, /
    ) -> None: ...
    def close(self) -> None: ...


class TokenStream:
    """The tokens of DATASET, some of which may not be made yet. The sequences and batches that its
    methods return can be read at once."""

    def __init__(
        self,
        preparation: TokenFolder,
        progress: TokenProgress,
        stopping: Callable[[], bool],
        *,
        seed: int,
        seq_len: int,
    ) -> None:
        self.preparation = preparation
        self._progress, self._stopping = progress, stopping
        self._seed, self._seq_len = seed, seq_len
        self._waited = 0.0

    @property
    def train(self) -> TokenShards:
        return self.preparation.train

    @property
    def order(self) -> SampleOrder:
        """The order of the sequences, as far as it is known now."""
        return self._order(self.preparation.index)

    @property
    def tokenizer(self) -> TokenizerFiles:
        return self.preparation.tokenizer

    def sequences(self, first: int, count: int) -> Numbers:
        """The numbers of the sequences that the samples [first, first + count) show.

        The order within a window does not depend on what comes after it, so a window can be shown
        before the size of the corpus is known. Raises OutOfData.
        """
        seq_len = self._seq_len
        needed = SampleOrder(None, self._seed).tokens_until(first + count, seq_len)
        with self._out_of_data() as waiting:
            index = self.preparation.wait_for("train", needed, waiting)
            sequences = self._order(index).sequences(first, count)
            self.preparation.require("train", sequences * seq_len, seq_len + 1, waiting)
        return sequences

    def recover(self, numbers: Numbers) -> Tokens:
        """The tokens (count, T + 1) of sequences that could be read before and cannot now: their
        files are brought again. Raises OutOfData."""
        return self._recover("train", numbers)

    def validation(self, batch_size: int, max_tokens: int) -> ValidationBatches:
        """Batches of the first held-out tokens: the same ones at every call. Raises OutOfData."""
        seq_len = self._seq_len
        with self._out_of_data() as waiting:
            self.preparation.wait_for("validation", max_tokens + 1, waiting)
            batches = ValidationBatches(
                self.preparation.validation,
                seq_len,
                batch_size,
                max_tokens,
                partial(self._recover, "validation"),
            )
            starts = np.arange(batches.n_sequences, dtype=np.int64) * seq_len
            self.preparation.require("validation", starts, seq_len + 1, waiting)
        return batches

    def take_waited(self) -> float:
        """Seconds spent waiting for tokens since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited

    def close(self) -> None:
        self.preparation.close()

    def _order(self, index: ShardIndex) -> SampleOrder:
        n_tokens = index.n_tokens("train")
        return corpus_order(n_tokens, self._seq_len, complete=index.complete, seed=self._seed)

    def _recover(self, split: Split, numbers: Numbers) -> Tokens:
        starts, length = numbers * self._seq_len, self._seq_len + 1
        made = self.preparation
        with self._out_of_data() as waiting:
            made.bring_again(split, starts, length, waiting)
            return TokenShards(made.directory, split, made.index).read_rows(starts, length)

    @contextmanager
    def _out_of_data(self) -> Iterator[Waiting]:
        """For work that waits for tokens, by what this gives. Whatever ends it is OutOfData."""

        def waiting(progress: PrepareProgress) -> None:
            if self._stopping():
                raise OutOfData
            self._progress.waiting(progress)

        try:
            yield waiting
        except OutOfData:
            raise
        except Exception as error:  # even a bug: the training commits its steps, then raises it
            raise OutOfData from error
        finally:
            seconds = self._progress.arrived()
            self._waited += seconds
            if seconds > _WORTH_A_LINE:
                log.info("waited %.1f s for tokens", seconds)
