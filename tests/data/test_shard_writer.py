from pathlib import Path

from app.data.shard_index import read_index
from app.data.shards import ShardWriter, TokenShards
from tests.data.test_shards import tokens, write


def test_the_files_are_plain_little_endian_numbers(tmp_path: Path) -> None:
    write(tmp_path)
    assert (tmp_path / "train-00001.bin").read_bytes() == bytes([100, 0])


def test_only_what_was_sealed_counts(tmp_path: Path) -> None:
    written = write(tmp_path)
    writer = ShardWriter(tmp_path, written)
    writer.append("train", tokens(0, 10))
    writer.append("validation", tokens(0, 10))
    assert (writer.n_tokens("train"), writer.n_pending("validation")) == (168, 10)
    assert read_index(tmp_path, "s", "t") == written


def test_a_shard_that_the_index_does_not_name_is_written_again(tmp_path: Path) -> None:
    written = write(tmp_path)
    (tmp_path / "train-00003.bin").write_bytes(b"from a process that was killed")
    (tmp_path / "train-00003.bin.partial").write_bytes(b"too")
    writer = ShardWriter(tmp_path, written)
    writer.append("train", tokens(158, 2))
    writer.seal(position=None, pieces=4, documents=4)
    assert TokenShards(tmp_path, "train", writer.index).read(157, 3).tolist() == [
        157,
        158,
        159,
    ]


def test_other_tokens_than_the_sealed_ones_replace_no_file(tmp_path: Path) -> None:
    written = write(tmp_path)
    before = (tmp_path / "train-00002.bin").read_bytes()
    writer = ShardWriter(tmp_path, written.first(2))
    writer.append("train", tokens(7, 57))
    assert not writer.restore(written.seals[2], position={"row": 3}, pieces=3, documents=3)
    assert (tmp_path / "train-00002.bin").read_bytes() == before
