"""What a job is going to read of the tokens of DATASET, and how many of them there are so far."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from app.data.shard_index import NamedShard, ShardIndex

_FIRST_SHARDS = 2  # a window of sequences lies in one shard or in two that follow each other


@dataclass(frozen=True)
class TokenNeed:
    """The training tokens [start, stop) of a longer sequence of tokens, which are read first
    (`stop` None: all that there are), and the first `validation` held-out ones."""

    start: int = 0
    stop: int | None = None
    validation: int = 0

    def met_by(self, index: ShardIndex) -> bool:
        """Whether the shards of `index` are enough, or all that the source gives."""
        return index.complete or (
            self.stop is not None
            and index.n_tokens("train") >= self.stop
            and index.n_tokens("validation") >= self.validation
        )

    def shards(self, index: ShardIndex) -> Iterator[NamedShard]:
        """The shards of `index` that the job reads, in the order in which it needs them."""
        train, ends = index.shards["train"], index.ends["train"]
        low = int(np.searchsorted(ends, self.start, side="right"))
        if low == len(train) and index.complete:  # the job begins in a later epoch
            low = 0
        stop = index.n_tokens("train") if self.stop is None else self.stop
        high = int(np.searchsorted(ends, stop, side="left")) + 1
        yield from train[low : low + _FIRST_SHARDS]
        if self.validation:
            held_out_ends = index.ends["validation"]
            last = int(np.searchsorted(held_out_ends, self.validation, side="left"))
            yield from index.shards["validation"][: last + 1]
        yield from train[low + _FIRST_SHARDS : high]
        if index.complete and stop > index.n_tokens("train"):  # more than one epoch is read
            yield from train[:low]


@dataclass(frozen=True)
class PrepareProgress:
    """How much of DATASET is in DATA_DIR as tokens, whether in shards yet or not.

    `tokens` counts training tokens; `tokens_total` of them are enough, and the source may end
    before. `tokens_made` of the tokens were made in the last `seconds`. While shards are fetched,
    `shards_total` says how many. `complete`: no more tokens are made.
    """

    documents: int = 0
    tokens: int = 0
    seconds: float = 0.0
    tokens_total: int | None = None
    tokens_made: int = 0
    shards_fetched: int = 0
    shards_total: int = 0
    complete: bool = False

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_made / max(1e-9, self.seconds)


Waiting = Callable[[PrepareProgress], None]
"""Called a few times a second while somebody waits for tokens, and no more once they are there:
a line about tokens that are still to come would be wrong after the line that they are complete.
What it raises ends the waiting. It must not itself wait for the preparation."""
