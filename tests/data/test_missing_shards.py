"""What DATA_DIR lacks, or holds and cannot read, is brought; only what cannot be replaced ends."""

import errno
import logging
import os
from pathlib import Path

import pytest

from app.data.preparation import Preparation
from app.data.sources import PinnedSource, pin_source
from app.data.token_cache import TOKENS
from app.data.token_need import TokenNeed
from app.data.tokenizer import TokenizerFiles
from app.errors import AccessDenied, Unavailable
from app.settings.variables import DataSettings
from app.stores.contract import Store
from app.stores.opening import open_store
from tests.support.small_corpus import SHARD, SMALL_BATCHES, corpus, tokenizer
from tests.support.token_nodes import MakeNode, Node, node, read_tokens, tokens_store
from tests.support.unreadable import make_unreadable

__all__ = ["corpus", "node", "tokenizer", "tokens_store"]

REASONS = {errno.EACCES: "Permission denied", errno.EIO: "Input/output error"}
unreadable = pytest.mark.parametrize("number", REASONS, ids=errno.errorcode.get)


def without_bucket(corpus: Path, data_dir: Path, tokenizer: TokenizerFiles) -> Preparation:
    data = DataSettings(dataset=str(corpus), data_dir=data_dir)
    made = Preparation(
        pin_source(data), tokenizer, TokenNeed(), shard_tokens=SHARD, limits=SMALL_BATCHES
    )
    made.run()
    return made


@unreadable
def test_a_shard_that_cannot_be_read_is_fetched_again_with_one_warning(
    number: int, node: MakeNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = node("first")
    data = first.prepare()
    monkeypatch.setattr(PinnedSource, "pieces", None)
    whole, expected = first.files(), data.train.read(0, 2 * SHARD).tolist()
    again, path = first.prepare(), data.directory / "train-00001.bin"
    make_unreadable(monkeypatch, path, number)
    assert read_tokens(again, 0, 2 * SHARD) == expected
    assert first.files() == whole
    assert caplog.messages == [f"{path} cannot be read ({REASONS[number]}): fetched again"]


@unreadable
def test_without_a_bucket_a_shard_that_cannot_be_read_is_made_again_with_one_warning(
    number: int,
    corpus: Path,
    tmp_path: Path,
    tokenizer: TokenizerFiles,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = without_bucket(corpus, tmp_path, tokenizer)
    expected = data.train.read(0, 2 * SHARD).tolist()
    path = data.directory / "train-00001.bin"
    again = without_bucket(corpus, tmp_path, tokenizer)
    make_unreadable(monkeypatch, path, number)
    assert read_tokens(again, 0, 2 * SHARD) == expected
    assert caplog.messages == [
        f"{path} cannot be read ({REASONS[number]}): made again from the source"
    ]


def test_a_shard_that_cannot_even_be_looked_at_is_fetched_again(
    node: MakeNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = node("first")
    data = first.prepare()
    monkeypatch.setattr(PinnedSource, "pieces", None)
    expected, path = data.train.read(0, 10).tolist(), data.directory / "train-00000.bin"
    path.unlink()
    path.symlink_to(path.name)
    assert read_tokens(first.prepare(), 0, 10) == expected
    (line,) = caplog.messages
    assert line.startswith(f"{path} cannot be read (") and line.endswith("): fetched again")
    assert not path.is_symlink()


@pytest.mark.parametrize(
    ("number", "failure", "reason"),
    [
        (
            errno.EACCES,
            AccessDenied,
            r"cannot be used \(Permission denied\): let this user \(uid \d+, gid \d+\) access",
        ),
        (errno.ENOSPC, Unavailable, r"is full \(No space left on device\): free some space"),
    ],
)
def test_a_shard_that_cannot_be_replaced_either_ends_the_work_and_is_named(
    number: int,
    failure: type[Exception],
    reason: str,
    corpus: Path,
    tmp_path: Path,
    tokenizer: TokenizerFiles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = without_bucket(corpus, tmp_path, tokenizer)
    again, path = without_bucket(corpus, tmp_path, tokenizer), data.directory / "train-00001.bin"
    make_unreadable(monkeypatch, path, errno.EIO)

    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("app.data.data_dir.os.fsync", refuse)
    with pytest.raises(failure, match=f"^DATA_DIR: {path} {reason}"):
        read_tokens(again, 0, 2 * SHARD)


def test_a_damaged_shard_is_named_once_however_often_the_bucket_is_asked(
    node: MakeNode,
    tokens_store: Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = node("first")
    data = first.prepare()
    fetch, outage = tokens_store.fetch, iter(range(3))
    path = data.directory / "train-00000.bin"
    path.write_bytes(b"\0" * path.stat().st_size)

    def unavailable(key: str, directory: Path) -> Path:
        if next(outage, None) is not None:
            raise Unavailable("the store answers 503")
        return fetch(key, directory)

    monkeypatch.setattr(tokens_store, "fetch", unavailable)
    monkeypatch.setattr("app.data.retries.time.sleep", lambda seconds: None)
    assert len(read_tokens(first.prepare(), 0, 10)) == 10
    assert [line for line in caplog.messages if str(path) in line] == [
        f"{path} was changed (SHA-256 differs): fetched again"
    ]


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
