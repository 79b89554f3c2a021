import copy
import errno
import json
import os
import pickle
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.data.shard_index import (
    INDEX,
    Seal,
    Shard,
    ShardIndex,
    decode_index,
    encode_index,
    mended_index,
    read_index,
)
from app.data.shards import ShardWriter, Tokens, TokenShards, is_missing, verify
from app.errors import AccessDenied, AppError, Damaged, IncompatibleRun, Unavailable
from tests.support.unreadable import make_unreadable

EMPTY = ShardIndex(source="s", tokenizer="t")
SIZES = (100, 1, 57)


def tokens(start: int, length: int) -> Tokens:
    return np.arange(start, start + length, dtype=np.uint16)


def write(directory: Path) -> ShardIndex:
    """Three shards of SIZES tokens that count upwards."""
    writer = ShardWriter(directory, EMPTY)
    start = 0
    for number, size in enumerate(SIZES, start=1):
        writer.append("train", tokens(start, size // 2))
        writer.append("train", tokens(start + size // 2, size - size // 2))
        writer.seal(position={"row": number}, pieces=number, documents=number)
        start += size
    return writer.index


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    directory = tmp_path_factory.mktemp("shards")
    return TokenShards(directory, "train", write(directory))


@given(data=st.data())
def test_any_part_can_be_read_over_the_borders_of_shards(
    shards: TokenShards, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, shards.n_tokens))
    length = data.draw(st.integers(0, shards.n_tokens - start))
    part = shards.read(start, length)
    assert part.dtype == np.uint16
    assert part.tolist() == list(range(start, start + length))


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (0, 159), (158, 1), (3, -1)])
def test_reading_outside_is_refused(shards: TokenShards, start: int, length: int) -> None:
    assert shards.n_tokens == 158
    with pytest.raises(IndexError):
        shards.read(start, length)


def test_what_is_read_is_a_copy(shards: TokenShards) -> None:
    shards.read(0, 5)[:] = 9
    assert shards.read(0, 5).tolist() == [0, 1, 2, 3, 4]


def test_a_loading_process_gets_the_paths_and_not_the_tokens(shards: TokenShards) -> None:
    shards.read(0, 158)
    sent = pickle.dumps(shards)
    assert len(sent) < 4000
    assert copy.deepcopy(shards).read(99, 3).tolist() == [99, 100, 101]


def test_the_index_can_be_read_back(tmp_path: Path) -> None:
    assert read_index(tmp_path, "s", "t") == EMPTY
    written = write(tmp_path)
    assert read_index(tmp_path, "s", "t") == written
    assert (written.n_tokens("train"), written.n_tokens("validation")) == (158, 0)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format_version": 1, "train": 3}'])
def test_an_index_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(Damaged, match=rf"{tmp_path / INDEX} is not readable: the next"):
        read_index(tmp_path, "s", "t")


@pytest.mark.parametrize(
    "change", [{"source": "x"}, {"tokenizer": "x"}, {"format_version": 1}], ids=str
)
def test_an_index_of_another_corpus_or_version_is_refused(
    tmp_path: Path, change: dict[str, object]
) -> None:
    write(tmp_path)
    path = tmp_path / INDEX
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(Damaged, match="another dataset or version: the next"):
        read_index(tmp_path, "s", "t")


def test_what_is_known_takes_the_place_of_a_damaged_index_and_only_of_that(tmp_path: Path) -> None:
    written = write(tmp_path)
    assert mended_index(tmp_path, EMPTY) == written
    (tmp_path / INDEX).write_text("{")
    assert mended_index(tmp_path, written) == read_index(tmp_path, "s", "t") == written


def test_an_index_of_a_newer_version_is_not_called_damaged(tmp_path: Path) -> None:
    write(tmp_path)
    content = json.loads((tmp_path / INDEX).read_text()) | {"format_version": 99}
    content["seals"][0]["language"] = "en"
    (tmp_path / INDEX).write_text(json.dumps(content))
    with pytest.raises(IncompatibleRun, match=r"format 99.*use the newer image"):
        read_index(tmp_path, "s", "t")


def test_a_changed_shard_is_found(tmp_path: Path) -> None:
    index = write(tmp_path)
    path = tmp_path / "train-00002.bin"
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    with pytest.raises(Damaged, match=rf"{path} was changed \(SHA-256 differs\)$"):
        verify(tmp_path, index.shards["train"][2])


def test_a_shortened_shard_is_found_also_without_its_hash(tmp_path: Path) -> None:
    index = write(tmp_path)
    path = tmp_path / "train-00002.bin"
    path.write_bytes(path.read_bytes()[:-2])
    for look in (
        lambda: verify(tmp_path, index.shards["train"][2]),
        lambda: TokenShards(tmp_path, "train", index).read(100, 5),
    ):
        with pytest.raises(Damaged, match=f"{path} has 112 bytes, not 114"):
            look()


def test_a_missing_shard_is_found(tmp_path: Path) -> None:
    index = write(tmp_path)
    (tmp_path / "train-00001.bin").unlink()
    with pytest.raises(Damaged, match=r"train-00001.bin is missing$"):
        verify(tmp_path, index.shards["train"][1])


@pytest.mark.parametrize(
    ("number", "failure"), [(errno.EACCES, AccessDenied), (errno.EIO, Unavailable)]
)
def test_a_shard_that_cannot_be_read_is_neither_damaged_nor_missing(
    number: int, failure: type[AppError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = write(tmp_path).shards["train"][2]
    path = tmp_path / named.name
    make_unreadable(monkeypatch, path, number)
    with pytest.raises(failure, match=rf"^{path} cannot be read \({os.strerror(number)}\)$"):
        verify(tmp_path, named)
    assert not is_missing(tmp_path, named)


def test_a_reader_names_a_shard_that_it_may_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = TokenShards(tmp_path, "train", write(tmp_path))
    make_unreadable(monkeypatch, tmp_path / "train-00002.bin", errno.EACCES)
    assert reader.read(0, 101).tolist() == list(range(101))
    with pytest.raises(
        AccessDenied, match=f"^{tmp_path}/train-00002.bin cannot be read .*: start again"
    ):
        reader.read(101, 1)


def test_a_shard_that_cannot_be_looked_at_is_there(tmp_path: Path) -> None:
    named = write(tmp_path).shards["train"][1]
    assert not is_missing(tmp_path, named)
    (tmp_path / named.name).unlink()
    assert is_missing(tmp_path, named)
    (tmp_path / named.name).symlink_to(named.name)
    assert not is_missing(tmp_path, named)


def test_rows_are_read_at_once(shards: TokenShards) -> None:
    rows = shards.read_rows(np.array([97, 0, 150]), 8)
    assert rows.dtype == np.uint16
    assert rows.tolist() == [list(range(start, start + 8)) for start in (97, 0, 150)]


def test_more_shards_than_a_process_may_hold_open_can_be_read(tmp_path: Path) -> None:
    count = 300
    for number in range(count):
        (tmp_path / f"train-{number:05d}.bin").write_bytes(number.to_bytes(2, "little"))
    shard = Shard(tokens=1, sha256="0" * 64)
    index = replace(EMPTY, seals=(Seal(1, 1, 1, train=shard),) * count)
    reader = TokenShards(tmp_path, "train", index)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = 100 + len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, limits[1]))
    try:
        for _ in range(2):
            assert reader.read(0, count).tolist() == list(range(count))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_reader_follows_an_index_that_grows(tmp_path: Path) -> None:
    written = write(tmp_path)
    reader = copy.deepcopy(TokenShards(tmp_path, "train", written.first(1)))
    assert reader.n_tokens == 100
    assert reader.read(98, 20).tolist() == list(range(98, 118))
    assert reader.n_tokens == 158
    with pytest.raises(IndexError):
        reader.read(150, 9)


def test_the_first_seals_are_an_index_of_their_own(tmp_path: Path) -> None:
    written = write(tmp_path)
    first = written.first(2)
    assert (first.pieces, first.n_tokens("train")) == (2, 101)
    assert written.continues(first) and not first.continues(written)
    assert not written.continues(written)
    writer = ShardWriter(tmp_path, first)
    writer.append("train", tokens(101, 57))
    assert writer.restore(written.seals[2], position={"row": 3}, pieces=3, documents=3)
    assert writer.index == first


def test_an_index_that_differs_in_the_past_is_no_continuation(tmp_path: Path) -> None:
    written = write(tmp_path)
    writer = ShardWriter(tmp_path, EMPTY)
    writer.append("train", tokens(7, 7))
    writer.seal(position=None, pieces=1, documents=1)
    assert not written.continues(writer.index)


@pytest.mark.parametrize(
    "change",
    [
        {"pieces": -1},
        {"pieces": "1"},
        {"train": {"tokens": 3, "sha256": "../../etc/passwd"}},
        {"train": {"tokens": 3, "sha256": "0" * 64, "name": "../x"}},
        {"more": 1},
    ],
    ids=str,
)
def test_a_seal_that_we_would_not_write_is_refused(
    tmp_path: Path, change: dict[str, object]
) -> None:
    content = json.loads(encode_index(write(tmp_path)))
    content["seals"][1].update(change)
    with pytest.raises(Damaged, match="somewhere is not readable"):
        decode_index(json.dumps(content).encode(), "s", "t", "somewhere")
