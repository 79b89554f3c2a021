"""Token ids by hand, and three shards whose tokens count upwards."""

from pathlib import Path

import numpy as np

from app.data.shard_index import ShardIndex, Tally
from app.data.shards import ShardWriter, Tokens

EMPTY = ShardIndex(source="s", tokenizer="t")
SIZES = (100, 1, 57)


def tokens(*ids: int) -> Tokens:
    return np.array(ids, dtype=np.uint16)


def counting_tokens(start: int, length: int) -> Tokens:
    return np.arange(start, start + length, dtype=np.uint16)


def write_counting_shards(directory: Path) -> ShardIndex:
    """Three shards of SIZES tokens that count upwards."""
    writer = ShardWriter(directory, EMPTY)
    start = 0
    for number, size in enumerate(SIZES, start=1):
        writer.append("train", counting_tokens(start, size // 2))
        writer.append("train", counting_tokens(start + size // 2, size - size // 2))
        writer.seal(Tally(position={"row": number}, pieces=number, documents=number))
        start += size
    return writer.index
