import copy
import errno
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
    Seal,
    Shard,
    Tally,
    read_index,
)
from app.data.shards import ShardWriter, TokenShards, is_missing, verify
from app.errors import AccessDenied, AppError, Damaged, Unavailable
from tests.support import needs
from tests.support.sample_tokens import EMPTY, counting_tokens, write_counting_shards
from tests.support.unreadable import make_unreadable


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    directory = tmp_path_factory.mktemp("shards")
    return TokenShards(directory, "train", write_counting_shards(directory))


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


def test_a_changed_shard_is_found(tmp_path: Path) -> None:
    index = write_counting_shards(tmp_path)
    path = tmp_path / "train-00002.bin"
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    with pytest.raises(Damaged, match=rf"{path} was changed \(SHA-256 differs\)$"):
        verify(tmp_path, index.shards["train"][2])


def test_a_shortened_shard_is_found_also_without_its_hash(tmp_path: Path) -> None:
    index = write_counting_shards(tmp_path)
    path = tmp_path / "train-00002.bin"
    path.write_bytes(path.read_bytes()[:-2])
    for look in (
        lambda: verify(tmp_path, index.shards["train"][2]),
        lambda: TokenShards(tmp_path, "train", index).read(100, 5),
    ):
        with pytest.raises(Damaged, match=f"{path} has 112 bytes, not 114"):
            look()


def test_a_shard_that_is_cut_while_it_is_read_is_damaged_and_ends_no_process(
    tmp_path: Path,
) -> None:
    reader = TokenShards(tmp_path, "train", write_counting_shards(tmp_path))
    assert reader.read(100, 5).tolist() == [100, 101, 102, 103, 104]
    path = tmp_path / "train-00002.bin"
    whole = path.read_bytes()
    os.truncate(path, 2)
    with pytest.raises(Damaged, match=f"{path} has 2 bytes, not 114: start again"):
        reader.read(100, 5)
    path.unlink()
    path.write_bytes(whole)
    assert reader.read(100, 5).tolist() == [100, 101, 102, 103, 104]


def test_a_reader_that_has_a_shard_open_goes_on_where_another_file_takes_its_name(
    tmp_path: Path,
) -> None:
    reader = TokenShards(tmp_path, "train", write_counting_shards(tmp_path))
    reader.read(100, 5)
    path, other = tmp_path / "train-00002.bin", tmp_path / "other"
    other.write_bytes(path.read_bytes())
    os.truncate(path, 0)
    other.rename(path)
    assert reader.read(101, 3).tolist() == [101, 102, 103]


def test_a_missing_shard_is_found(tmp_path: Path) -> None:
    index = write_counting_shards(tmp_path)
    (tmp_path / "train-00001.bin").unlink()
    with pytest.raises(Damaged, match=r"train-00001.bin is missing$"):
        verify(tmp_path, index.shards["train"][1])


@pytest.mark.parametrize(
    ("number", "failure"), [(errno.EACCES, AccessDenied), (errno.EIO, Unavailable)]
)
def test_a_shard_that_cannot_be_read_is_neither_damaged_nor_missing(
    number: int, failure: type[AppError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = write_counting_shards(tmp_path).shards["train"][2]
    path = tmp_path / named.name
    make_unreadable(monkeypatch, path, number)
    with pytest.raises(failure, match=rf"^{path} cannot be read \({os.strerror(number)}\)$"):
        verify(tmp_path, named)
    assert not is_missing(tmp_path, named)


def test_a_reader_names_a_shard_that_it_may_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = TokenShards(tmp_path, "train", write_counting_shards(tmp_path))
    make_unreadable(monkeypatch, tmp_path / "train-00002.bin", errno.EACCES)
    assert reader.read(0, 101).tolist() == list(range(101))
    with pytest.raises(
        AccessDenied, match=f"^{tmp_path}/train-00002.bin cannot be read .*: start again"
    ):
        reader.read(101, 1)


def test_a_shard_that_cannot_be_looked_at_is_there(tmp_path: Path) -> None:
    named = write_counting_shards(tmp_path).shards["train"][1]
    assert not is_missing(tmp_path, named)
    (tmp_path / named.name).unlink()
    assert is_missing(tmp_path, named)
    (tmp_path / named.name).symlink_to(named.name)
    assert not is_missing(tmp_path, named)


def test_rows_are_read_at_once(shards: TokenShards) -> None:
    rows = shards.read_rows(np.array([97, 0, 150]), 8)
    assert rows.dtype == np.uint16
    assert rows.tolist() == [list(range(start, start + 8)) for start in (97, 0, 150)]


@needs.proc
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
    written = write_counting_shards(tmp_path)
    reader = copy.deepcopy(TokenShards(tmp_path, "train", written.first(1)))
    assert reader.n_tokens == 100
    assert reader.read(98, 20).tolist() == list(range(98, 118))
    assert reader.n_tokens == 158
    with pytest.raises(IndexError):
        reader.read(150, 9)


def test_the_files_are_plain_little_endian_numbers(tmp_path: Path) -> None:
    write_counting_shards(tmp_path)
    assert (tmp_path / "train-00001.bin").read_bytes() == bytes([100, 0])


def test_only_what_was_sealed_counts(tmp_path: Path) -> None:
    written = write_counting_shards(tmp_path)
    writer = ShardWriter(tmp_path, written)
    writer.append("train", counting_tokens(0, 10))
    writer.append("validation", counting_tokens(0, 10))
    assert (writer.n_tokens("train"), writer.n_pending("validation")) == (168, 10)
    assert read_index(tmp_path, "s", "t") == written


def test_a_shard_that_the_index_does_not_name_is_written_again(tmp_path: Path) -> None:
    written = write_counting_shards(tmp_path)
    (tmp_path / "train-00003.bin").write_bytes(b"from a process that was killed")
    (tmp_path / "train-00003.bin.partial").write_bytes(b"too")
    writer = ShardWriter(tmp_path, written)
    writer.append("train", counting_tokens(158, 2))
    writer.seal(Tally(position=None, pieces=4, documents=4))
    assert TokenShards(tmp_path, "train", writer.index).read(157, 3).tolist() == [
        157,
        158,
        159,
    ]


def test_other_tokens_than_the_sealed_ones_replace_no_file(tmp_path: Path) -> None:
    written = write_counting_shards(tmp_path)
    before = (tmp_path / "train-00002.bin").read_bytes()
    writer = ShardWriter(tmp_path, written.first(2))
    writer.append("train", counting_tokens(7, 57))
    assert not writer.restore(written.seals[2], Tally(position={"row": 3}, pieces=3, documents=3))
    assert (tmp_path / "train-00002.bin").read_bytes() == before
