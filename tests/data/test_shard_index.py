import json
from pathlib import Path

import pytest

from app.data.shard_index import (
    INDEX,
    Tally,
    decode_index,
    encode_index,
    mended_index,
    read_index,
)
from app.data.shards import ShardWriter
from app.errors import Damaged, IncompatibleRun
from tests.support.sample_tokens import EMPTY, counting_tokens, write_counting_shards


def test_the_index_can_be_read_back(tmp_path: Path) -> None:
    assert read_index(tmp_path, "s", "t") == EMPTY
    written = write_counting_shards(tmp_path)
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
    write_counting_shards(tmp_path)
    path = tmp_path / INDEX
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(Damaged, match="another dataset or version: the next"):
        read_index(tmp_path, "s", "t")


@pytest.mark.parametrize(
    "change",
    [
        {"position": {"file": "x"}},
        {"position": {"file": None}},
        {"position": {"offset": -1}},
        {"position": {"rows": 10**30}},
        {"position": {"sources": [{"after": {"line": True}, "characters": 1}]}},
        {"position": {"sources": [3]}},
        {"position": [1]},
        {"train": {"tokens": 10**12, "sha256": "0" * 64}},
        {"documents": -1},
    ],
    ids=str,
)
def test_a_seal_with_numbers_that_cannot_be_is_damage(
    tmp_path: Path, change: dict[str, object]
) -> None:
    write_counting_shards(tmp_path)
    path = tmp_path / INDEX
    content = json.loads(path.read_text())
    content["seals"][0] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(Damaged, match="is not readable: the next"):
        read_index(tmp_path, "s", "t")


def test_what_is_known_takes_the_place_of_a_damaged_index_and_only_of_that(tmp_path: Path) -> None:
    written = write_counting_shards(tmp_path)
    assert mended_index(tmp_path, EMPTY) == written
    (tmp_path / INDEX).write_text("{")
    assert mended_index(tmp_path, written) == read_index(tmp_path, "s", "t") == written


def test_an_index_of_a_newer_version_is_not_called_damaged(tmp_path: Path) -> None:
    write_counting_shards(tmp_path)
    content = json.loads((tmp_path / INDEX).read_text()) | {"format_version": 99}
    content["seals"][0]["language"] = "en"
    (tmp_path / INDEX).write_text(json.dumps(content))
    with pytest.raises(IncompatibleRun, match=r"format 99.*use the newer image"):
        read_index(tmp_path, "s", "t")


def test_the_first_seals_are_an_index_of_their_own(tmp_path: Path) -> None:
    written = write_counting_shards(tmp_path)
    first = written.first(2)
    assert (first.pieces, first.n_tokens("train")) == (2, 101)
    assert written.continues(first) and not first.continues(written)
    assert not written.continues(written)
    writer = ShardWriter(tmp_path, first)
    writer.append("train", counting_tokens(101, 57))
    assert writer.restore(written.seals[2], Tally(position={"row": 3}, pieces=3, documents=3))
    assert writer.index == first


def test_an_index_that_differs_in_the_past_is_no_continuation(tmp_path: Path) -> None:
    written = write_counting_shards(tmp_path)
    writer = ShardWriter(tmp_path, EMPTY)
    writer.append("train", counting_tokens(7, 7))
    writer.seal(Tally(position=None, pieces=1, documents=1))
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
    content = json.loads(encode_index(write_counting_shards(tmp_path)))
    content["seals"][1].update(change)
    with pytest.raises(Damaged, match="somewhere is not readable"):
        decode_index(json.dumps(content).encode(), "s", "t", "somewhere")
