"""Tokens from whose order it can be seen which sample a process shows."""

from pathlib import Path

import numpy as np

from app.data.sample_order import SampleOrder
from app.data.shard_index import ShardIndex, Tally, read_index
from app.data.shards import ShardWriter, TokenShards

SEQ_LEN = 16
N_SEQUENCES = 50
GLOBAL_BATCH_SIZE = 8
ORDER = SampleOrder(N_SEQUENCES, seed=11, window=16)


def write_tokens(folder: Path) -> None:
    """A corpus whose sequence number k begins with the token k."""
    tokens = np.random.default_rng(3).integers(0, 256, N_SEQUENCES * SEQ_LEN + 1)
    tokens[:-1:SEQ_LEN] = np.arange(N_SEQUENCES)
    writer = ShardWriter(folder, ShardIndex(source="s", tokenizer="t"))
    for half in np.array_split(tokens.astype(np.uint16), 2):  # sequences over a shard border too
        writer.append("train", half)
        writer.seal(Tally(position=None, pieces=1, documents=1))


def open_tokens(folder: Path) -> TokenShards:
    return TokenShards(folder, "train", read_index(folder, "s", "t"))
