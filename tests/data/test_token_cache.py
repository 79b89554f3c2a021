"""Tokens in a store: fetched in the order of need, verified, and never made worse."""

import errno
import hashlib
import json
import logging
import multiprocessing
import os
import signal
import threading
from _thread import interrupt_main
from pathlib import Path
from typing import Any

import pytest

from app.data.pieces import Pieces, Position
from app.data.retries import PAUSES
from app.data.shard_index import INDEX, decode_index
from app.data.sources import PinnedSource
from app.data.token_cache import TOKENS, CacheUploader, TokenCache, open_token_cache
from app.data.tokenizer import TokenizerFiles, read_tokenizer
from app.errors import AccessDenied, Damaged, IncompatibleRun, Unavailable
from app.stores.contract import Store
from app.stores.opening import open_store
from tests.support.interposed import Answer, Interposed
from tests.support.small_corpus import SHARD, corpus, tokenizer
from tests.support.token_nodes import MakeNode, Node, node, read_tokens, shards_in, tokens_store
from tests.support.unreadable import make_unreadable

__all__ = ["corpus", "node", "tokenizer", "tokens_store"]


def cached_names(store: Store) -> list[str]:
    return [info.key.rsplit("/", 1)[1] for info in store.list("")]


def test_a_new_node_fetches_and_does_not_read_the_text(
    node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = node("first")
    whole = first.prepare()
    monkeypatch.setattr(PinnedSource, "pieces", None)
    second = node("second")
    fetched = second.prepare(validation=10**6)
    assert fetched.index == whole.index
    assert second.files() == first.files()
    n = whole.train.n_tokens
    assert read_tokens(fetched, 0, n) == whole.train.read(0, n).tolist()


def test_the_same_through_a_bucket(
    tmp_path: Path, corpus: Path, tokenizer: TokenizerFiles, bucket: str
) -> None:
    uri = f"s3://{bucket}/some/prefix"
    cache = open_token_cache(uri, "0" * 64)
    assert cache is not None and cache.uri == f"{uri}/_tokens/{'0' * 64}"
    store = open_store(uri, TOKENS)
    first = Node(tmp_path / "first", corpus, tokenizer, store)
    first.prepare()
    second = Node(tmp_path / "second", corpus, tokenizer, store)
    second.prepare(validation=10**6)
    assert second.files() == first.files() and second.made == [0]


def test_a_folder_on_a_volume_is_no_cache() -> None:
    assert open_token_cache("file:///checkpoints", "0" * 64) is None


def test_a_resumed_node_fetches_what_it_reads_first_and_not_what_is_behind_it(
    node: MakeNode,
) -> None:
    whole = node("first").prepare(stop=7 * SHARD)
    ends = whole.index.ends["train"].tolist()
    late = node("late")
    fetched = late.prepare(start=ends[2] + 5, stop=ends[4])
    assert sorted(late.files()) == ["train-00003.bin", "train-00004.bin"]
    assert read_tokens(fetched, ends[2] + 5, 100) == whole.train.read(ends[2] + 5, 100).tolist()


def test_a_node_that_falls_back_to_an_earlier_step_fetches_what_lies_before(
    node: MakeNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    whole = node("first").prepare(stop=7 * SHARD)
    monkeypatch.setattr(PinnedSource, "pieces", None)
    ends = whole.index.ends["train"].tolist()
    late = node("late")
    fetched = late.prepare(start=ends[2] + 5, stop=ends[4])
    assert "train-00001.bin" not in late.files()
    assert read_tokens(fetched, ends[1] - 50, 100) == whole.train.read(ends[1] - 50, 100).tolist()
    assert "train-00001.bin was needed and is here now" in caplog.messages
    assert "train-00000.bin" not in late.files()


def test_what_lies_before_does_not_wait_for_the_end_of_the_preparation(
    node: MakeNode, tokens_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = node("first").prepare(stop=3 * SHARD)
    read_it, late = threading.Event(), node("late")

    def slow(source: PinnedSource, after: Position | None) -> Pieces:
        assert read_it.wait(60)
        return source.opened.pieces(after)

    monkeypatch.setattr(PinnedSource, "pieces", slow)
    ends = whole.index.ends["train"].tolist()
    data = late.open(start=ends[1] + 5, stop=6 * SHARD)
    data.start()
    data.wait_for("train", ends[1], lambda _: None)
    assert read_tokens(data, 0, 10) == whole.train.read(0, 10).tolist()
    read_it.set()
    data.wait_for("train", 6 * SHARD, lambda _: None)


def test_a_shard_that_rots_in_the_data_dir_is_fetched_again_with_one_warning(
    node: MakeNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = node("first")
    data = first.prepare()
    monkeypatch.setattr(PinnedSource, "pieces", None)
    whole = first.files()
    path = data.directory / "train-00000.bin"
    path.write_bytes(b"\0" * path.stat().st_size)
    again = first.prepare()
    assert len(read_tokens(again, 0, 10)) == 10
    assert first.files() == whole
    (line,) = caplog.messages
    assert line == f"{path} was changed (SHA-256 differs): fetched again"


def test_a_late_node_that_turns_to_another_epoch_gets_the_beginning_too(node: MakeNode) -> None:
    whole = node("first").prepare()
    late = node("late")
    late.prepare(start=2 * SHARD, stop=10**9)
    assert len(late.files()) == len(whole.index.shards["train"])


def test_what_the_cache_does_not_hold_is_made_after_it(
    node: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = node("first")
    part = first.prepare(stop=2 * SHARD)
    begun: list[Position | None] = []

    def noted(source: PinnedSource, after: Position | None) -> Pieces:
        begun.append(after)
        return source.opened.pieces(after)

    monkeypatch.setattr(PinnedSource, "pieces", noted)
    second = node("second")
    whole = second.prepare(validation=10**6)
    assert begun == [part.index.tally.position]
    first.prepare(validation=10**6)
    assert second.files() == first.files()
    assert whole.index.complete
    third = node("third").prepare()
    assert third.index == whole.index and third.progress.tokens_made == 0


@pytest.mark.parametrize("damage", ["changed", "shortened", "missing"])
def test_a_damaged_cached_shard_is_made_again_with_one_line(
    damage: str,
    node: MakeNode,
    tokens_store: Store,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = node("first")
    first.prepare()
    (shard,) = (tmp_path / "store").rglob("train-00001.bin")
    if damage == "changed":
        shard.write_bytes(b"\0" * shard.stat().st_size)
    elif damage == "shortened":
        shard.write_bytes(shard.read_bytes()[:-2])
    else:
        shard.unlink()
    second = node("second")
    data = second.prepare()
    (line,) = caplog.messages
    assert "train-00001.bin" in line and "made again from the source" in line
    train = {name: digest for name, digest in first.files().items() if name[0] == "t"}
    assert {name: second.files()[name] for name in train} == train
    assert data.index.complete


@pytest.mark.parametrize("outage", [3, 10**6])
def test_a_bucket_that_does_not_answer_is_waited_for_and_then_done_without(
    outage: int,
    node: MakeNode,
    tokens_store: Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = node("first")
    first.prepare()
    fetch, failures = tokens_store.fetch, iter(range(outage))
    pauses: list[float] = []

    def unavailable(key: str, directory: Path) -> Path:
        if next(failures, None) is not None:
            raise Unavailable("the store answers 503")
        return fetch(key, directory)

    monkeypatch.setattr(tokens_store, "fetch", unavailable)
    monkeypatch.setattr("app.data.retries.time.sleep", pauses.append)
    second = node("second")
    assert second.prepare(validation=10**6).index.complete
    assert second.files() == first.files()
    made_again = "the store answers 503: made again from the source" in caplog.messages
    assert made_again == (outage > 3)
    assert tuple(pauses) == PAUSES if made_again else 0 < len(pauses) <= 3


def test_cached_shards_that_may_not_be_read_are_made_again_and_said_loudly_once(
    node: MakeNode,
    tokens_store: Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = node("first")
    first.prepare()
    fetch = tokens_store.fetch

    def refuse(key: str, directory: Path) -> Path:
        if key.endswith(("train-00001.bin", "train-00003.bin")):
            raise AccessDenied("CHECKPOINT_URI: access denied")
        return fetch(key, directory)

    monkeypatch.setattr(tokens_store, "fetch", refuse)
    second = node("second")
    assert second.prepare(validation=10**6).index.complete
    assert second.files() == first.files()
    (line,) = [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert line.levelname == "ERROR"
    assert line.getMessage().startswith("NO ACCESS TO CACHED TOKENS")
    assert line.getMessage().endswith("CHECKPOINT_URI: access denied")


def test_who_is_interrupted_does_not_wait_for_a_bucket_that_is_silent(
    node: MakeNode, tokens_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    node("first").prepare()
    fetch, released = tokens_store.fetch, threading.Event()
    waited_for: list[str] = []

    def silent(key: str, directory: Path) -> Path:
        if not key.endswith("train-00000.bin"):
            released.wait(60)
            waited_for.append(key)
        else:
            interrupt_main()
        return fetch(key, directory)

    monkeypatch.setattr(tokens_store, "fetch", silent)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    second = node("second").open()
    with pytest.raises(KeyboardInterrupt):
        second.run()
    signal.signal(signal.SIGINT, handler)
    assert not waited_for
    released.set()


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000])
def test_an_index_that_cannot_be_read_is_said_and_mended(
    content: bytes, node: MakeNode, tokens_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    first = node("first").prepare(stop=SHARD)
    tokens_store.put(f"{first.fingerprint}/{INDEX}", [content])
    second = node("second")
    whole = second.prepare().index
    assert whole.complete
    assert "the token cache is not used" in caplog.text
    assert "replaced by the index of what is uploaded again" in caplog.text
    third = node("third")
    assert third.prepare().index == whole and third.made == [0], "it was mended for all"


def test_an_index_of_a_newer_version_is_left_alone(node: MakeNode, tokens_store: Store) -> None:
    first = node("first").prepare(stop=SHARD)
    key, newer = f"{first.fingerprint}/{INDEX}", b'{"format_version": 99}'
    tokens_store.put(key, [newer])
    with pytest.raises(IncompatibleRun, match="use the newer image"):
        node("second").prepare()
    assert tokens_store.get(key)[0] == newer


def test_an_index_of_other_tokens_is_left_alone(
    node: MakeNode, tokens_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    first = node("first").prepare(stop=SHARD)
    key = f"{first.fingerprint}/{INDEX}"
    content = json.loads(tokens_store.get(key)[0])
    content["seals"][0]["train"]["sha256"] = "0" * 64
    foreign = json.dumps(content).encode()
    tokens_store.put(key, [foreign])
    assert node("first").prepare().index.continues(first.index)
    assert "holds other tokens: not used" in caplog.text
    assert tokens_store.get(key)[0] == foreign
    with pytest.raises(Damaged, match=f"does not give the tokens .* .and {tokens_store.uri}"):
        node("second").prepare(stop=10)


def test_shards_are_up_before_the_index_names_them(node: MakeNode, tokens_store: Store) -> None:
    put, names = tokens_store.put, []

    def watched(key: str, data: Any) -> None:
        put(key, data)
        names.append(key.rsplit("/", 1)[1])

    first = node("first")
    tokens_store.put = watched  # type: ignore[method-assign]
    index = first.prepare().index
    stored = tokens_store.get(f"{first.prepare().fingerprint}/{INDEX}")[0]
    named = decode_index(stored, index.source, index.tokenizer, "store")
    assert named == index
    assert {n.name for shards in named.shards.values() for n in shards} <= set(names)


def test_a_shorter_index_never_replaces_a_longer_one(node: MakeNode, tokens_store: Store) -> None:
    first = node("first")
    whole = first.prepare()
    cache = TokenCache(tokens_store, whole.fingerprint)
    before = tokens_store.get(f"{whole.fingerprint}/{INDEX}")
    cache.upload(whole.index.first(2), whole.directory, lambda: True, lambda *_: None)
    assert tokens_store.get(f"{whole.fingerprint}/{INDEX}") == before


def shard_not_uploaded_yet(node: Node, monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as offline:
        offline.setattr("app.data.token_cache.TokenCache.upload", lambda *_: None)
        return node.prepare().directory / "train-00001.bin"


def test_a_shard_that_rots_before_its_upload_is_made_again_and_does_not_spread(
    node: MakeNode,
    tokens_store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = node("first")
    path = shard_not_uploaded_yet(first, monkeypatch)
    good = first.files()
    path.write_bytes(b"\0" * path.stat().st_size)
    first.prepare()
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line == f"{path} was changed (SHA-256 differs): made again before it is uploaded"
    assert first.files() == good
    assert shards_in(tmp_path / "store") == good


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO], ids=errno.errorcode.get)
def test_a_shard_that_cannot_be_read_is_made_again_and_uploaded(
    number: int,
    node: MakeNode,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = node("first")
    path = shard_not_uploaded_yet(first, monkeypatch)
    good = first.files()
    make_unreadable(monkeypatch, path, number)
    first.prepare()
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line == (
        f"{path} cannot be read ({os.strerror(number)}): made again before it is uploaded"
    )
    assert shards_in(tmp_path / "store") == good


class Panic(BaseException):
    """As the tokenizer's Rust side raises it: no Exception."""


@pytest.mark.parametrize("failure", [ValueError, Panic])
def test_a_repair_that_fails_for_any_reason_costs_one_warning_and_the_next_upload_is_made(
    failure: type[BaseException],
    node: MakeNode,
    tokens_store: Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = node("first")
    with monkeypatch.context() as offline:
        offline.setattr("app.data.token_cache.TokenCache.upload", lambda *_: None)
        whole = first.prepare()
    path, failed = whole.directory / "train-00001.bin", threading.Event()
    content = path.read_bytes()
    path.write_bytes(bytes(len(content)))
    cache = TokenCache(tokens_store, whole.fingerprint)

    def repair(*_: object) -> None:
        if not failed.is_set():
            failed.set()
            raise failure("a row that nobody understands")
        path.write_bytes(content)

    uploader = CacheUploader(cache, whole.directory, repair)
    uploader.submit(whole.index)
    assert failed.wait(60)
    uploader.submit(whole.index)
    uploader.finish()
    (line,) = [line for line in caplog.messages if "could not be uploaded" in line]
    assert line.endswith("other nodes make them again: a row that nobody understands")
    assert cache.read_index(whole.index.source, whole.index.tokenizer) == whole.index


def test_a_shard_that_cannot_be_made_again_is_not_uploaded(
    node: MakeNode, tokens_store: Store, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as offline:
        offline.setattr("app.data.token_cache.TokenCache.upload", lambda *_: None)
        whole = node("first").prepare()
    path = whole.directory / "train-00001.bin"
    path.write_bytes(b"\0" * path.stat().st_size)
    cache = TokenCache(tokens_store, whole.fingerprint)
    with pytest.raises(Damaged, match=rf"{path} was changed"):
        cache.upload(whole.index, whole.directory, lambda: True, lambda *_: None)
    assert not list((tmp_path / "store").rglob("train-00001.bin"))
    assert not list((tmp_path / "store").rglob(INDEX))


@pytest.mark.parametrize("failure", [Unavailable, AccessDenied])
def test_preparing_ends_with_the_failure_of_the_upload_after_one_warning(
    failure: type[Exception],
    node: MakeNode,
    tokens_store: Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(key: str, data: Any) -> None:
        raise failure("no")

    monkeypatch.setattr(tokens_store, "put", refuse)
    with pytest.raises(failure, match="no"):
        node("first").prepare()
    (line,) = caplog.messages
    assert "could not be uploaded" in line


@pytest.mark.parametrize("refused", ["put_if_absent", "put_if_match"])
def test_an_index_that_is_refused_for_no_reason_fails_the_upload_and_not_the_tokens(
    refused: str,
    node: MakeNode,
    tokens_store: Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if refused == "put_if_match":
        node("first").prepare(stop=SHARD)
    monkeypatch.setattr(tokens_store, refused, lambda *_: None)
    second = node("second").open()
    with pytest.raises(Unavailable, match=r"index\.json is refused"):
        second.run()
    assert second.index.complete
    (line,) = caplog.messages
    assert "could not be uploaded" in line
    assert "index.json is refused, though no other process wrote it" in line


def test_a_server_that_compares_etags_without_quotes_gets_the_whole_index(
    tmp_path: Path,
    corpus: Path,
    tokenizer: TokenizerFiles,
    bucket: str,
    s3_answers: Interposed,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def ceph(environ: dict[str, Any]) -> Answer | None:
        if "HTTP_IF_MATCH" in environ:
            if environ["HTTP_IF_MATCH"].startswith('"'):
                return 412, "<Error><Code>PreconditionFailed</Code></Error>"
            environ["HTTP_IF_MATCH"] = f'"{environ["HTTP_IF_MATCH"]}"'
        return None

    s3_answers.answering = ceph
    first = Node(tmp_path / "first", corpus, tokenizer, open_store(f"s3://{bucket}/x", TOKENS))
    first.prepare(stop=SHARD)
    whole = first.prepare().index
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    second = Node(tmp_path / "second", corpus, tokenizer, open_store(f"s3://{bucket}/x", TOKENS))
    assert second.prepare().index == whole and second.made == [0]


def test_parts_of_shards_that_a_kill_left_long_ago_are_removed(
    tmp_path: Path,
    corpus: Path,
    tokenizer: TokenizerFiles,
    bucket: str,
    s3_client: Any,
) -> None:
    s3_client.create_multipart_upload(Bucket=bucket, Key="x/_tokens/f/train-00000.bin")
    store = open_store(f"s3://{bucket}/x", TOKENS)
    Node(tmp_path / "first", corpus, tokenizer, store).prepare(stop=SHARD)
    assert "Uploads" not in s3_client.list_multipart_uploads(Bucket=bucket)


def _work(folder: Path, corpus: Path, tokenizer_directory: Path, store: str, gate: Any) -> None:
    tokenizer = read_tokenizer(tokenizer_directory, "")
    node = Node(folder, corpus, tokenizer, open_store(store, TOKENS))
    gate.wait()
    node.prepare()


def test_two_nodes_that_prepare_at_once_leave_what_one_would(
    tmp_path: Path, corpus: Path, tokenizer: TokenizerFiles, bucket: str, node: MakeNode
) -> None:
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(2)
    uri = f"s3://{bucket}/x"
    words = (corpus, tokenizer.directory, uri, gate)
    nodes = [
        context.Process(target=_work, args=(tmp_path / name, *words)) for name in ("one", "two")
    ]
    for process in nodes:
        process.start()
    for process in nodes:
        process.join()
        assert process.exitcode == 0
    alone = node("alone")
    expected = alone.prepare()
    store = open_store(uri, TOKENS)
    stored = {
        info.key.rsplit("/", 1)[1]: hashlib.sha256(store.get(info.key)[0]).hexdigest()
        for info in store.list("")
    }
    content = store.get(f"{expected.fingerprint}/{INDEX}")[0]
    found = decode_index(content, expected.index.source, expected.index.tokenizer, "")
    assert found == expected.index
    del stored[INDEX]
    assert stored == alone.files()


def test_a_download_that_is_not_what_was_uploaded_does_not_reach_the_tokens(
    node: MakeNode, tokens_store: Store, tmp_path: Path
) -> None:
    whole = node("first").prepare()
    (shard,) = (tmp_path / "store").rglob("train-00000.bin")
    shard.write_bytes(b"\0" * shard.stat().st_size)
    target, scratch = tmp_path / "target", tmp_path / "scratch"
    target.mkdir()
    scratch.mkdir()
    cache = TokenCache(tokens_store, whole.fingerprint)
    with pytest.raises(Damaged, match=r"train-00000.bin is not what was uploaded"):
        cache.fetch(whole.index.shards["train"][0], scratch, target)
    assert not list(target.iterdir())


def test_tokens_can_be_read_while_the_rest_is_still_fetched(
    node: MakeNode, tokens_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = node("first").prepare()
    read_on = threading.Event()
    fetch = tokens_store.fetch

    def slow(key: str, directory: Path) -> Path:
        if not key.endswith(("train-00000.bin", "train-00001.bin")):
            assert read_on.wait(60)
        return fetch(key, directory)

    monkeypatch.setattr(tokens_store, "fetch", slow)
    data = node("second").open(stop=10**9)
    data.start()
    data.wait_for("train", 10, lambda _: None)
    assert read_tokens(data, 0, SHARD) == whole.train.read(0, SHARD).tolist()
    read_on.set()
    n = whole.train.n_tokens
    assert read_tokens(data, n - 10, 10) == whole.train.read(n - 10, 10).tolist()


def test_a_shard_that_is_not_here_at_its_upload_is_made_first(
    node: MakeNode, tokens_store: Store, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as offline:
        offline.setattr("app.data.token_cache.TokenCache.upload", lambda *_: None)
        whole = node("first").prepare()
    path = whole.directory / "train-00001.bin"
    content = path.read_bytes()
    path.unlink()
    cache = TokenCache(tokens_store, whole.fingerprint)

    def make(*_: object) -> None:
        path.write_bytes(content)

    cache.upload(whole.index, whole.directory, lambda: True, make)
    (stored,) = (tmp_path / "store").rglob("train-00001.bin")
    assert stored.read_bytes() == content
