"""What DATA_DIR lacks, or holds and cannot read, is brought; only what cannot be replaced ends."""

import errno
import logging
import os
from pathlib import Path

import pytest

from app.errors import AccessDenied
from app.stores import open_store
from app.token_cache import TOKENS
from app.tokenizer import TokenizerFiles
from tests.small_corpus import corpus, small_batches, tokenizer
from tests.test_token_cache import MakeNode, Node, node, tokens_store

__all__ = ["corpus", "node", "small_batches", "tokenizer", "tokens_store"]


def test_a_folder_here_that_refuses_downloads_is_no_bucket_that_refuses(
    tmp_path: Path,
    corpus: Path,
    tokenizer: TokenizerFiles,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = open_store(f"s3://{bucket}/prefix", TOKENS)
    Node(tmp_path / "first", corpus, tokenizer, store).prepare()

    def refuse(*paths: str) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("s3transfer.utils.rename_file", refuse)
    second = Node(tmp_path / "second", corpus, tokenizer, store)
    with pytest.raises(AccessDenied, match=r"^DATA_DIR: .*/incoming cannot be used .Permission"):
        second.prepare()
    assert "NO ACCESS TO CACHED TOKENS" not in caplog.text
    assert second.files() == {}


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
