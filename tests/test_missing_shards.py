"""What DATA_DIR lacks, or holds and cannot read, is brought; only what cannot be replaced ends."""

import logging

import pytest

from tests.small_corpus import corpus, small_batches, tokenizer
from tests.test_token_cache import MakeNode, node, tokens_store

__all__ = ["corpus", "node", "small_batches", "tokenizer", "tokens_store"]


def test_one_shard_is_said_in_the_singular(
    node: MakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    first = node("first")
    data = first.prepare()
    caplog.set_level(logging.INFO)
    for names in (["train-00000.bin"], ["train-00000.bin", "train-00001.bin"]):
        for name in names:
            (data.directory / name).unlink()
        first.prepare()
    assert caplog.messages == ["1 shard of tokens fetched", "2 shards of tokens fetched"]
