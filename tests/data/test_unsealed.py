"""The file of tokens that are not sealed: whole and of these seals, or left aside."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from app.data.shard_index import Seal, Shard, ShardIndex, Tally, decode_index, encode_index
from app.data.unsealed import FILE, Unsealed, UnsealedTokens, encode_unsealed
from tests.support.sample_tokens import tokens
from tests.support.unreadable import make_unreadable

INDEX = ShardIndex("s", "t", (Seal(3, 2, 90, train=Shard(5, "0" * 64), position={"row": 3}),))


TOKENS = Unsealed(
    INDEX,
    Tally({"row": 5, "turn": None}, 5, 4, 120, begun=(1, 17)),
    {"train": [tokens(1, 2), tokens(65_535)], "validation": [tokens(7)]},
)


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    file = UnsealedTokens(tmp_path)
    assert file.read(INDEX) is None
    file.note(TOKENS)
    assert file.read(INDEX) is None
    file.keep()
    found = file.read(INDEX)
    assert found is not None
    assert (found.index, found.tally) == (INDEX, TOKENS.tally)
    assert [part.tolist() for part in found.tokens["train"]] == [[1, 2, 65_535]]
    assert [part.tolist() for part in found.tokens["validation"]] == [[7]]
    file.clear()
    assert not list(tmp_path.iterdir())
    file.keep()
    assert not list(tmp_path.iterdir())


def test_it_is_written_again_only_when_there_is_more_or_time_has_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    monkeypatch.setattr("app.data.unsealed.write_durably", lambda path, data: written.append(data))
    now = 0.0
    monkeypatch.setattr("app.data.unsealed.time.monotonic", lambda: now)
    file = UnsealedTokens(tmp_path)
    for number in range(100):
        now = float(number)
        file.note(replace(TOKENS, tally=replace(TOKENS.tally, pieces=number)))
    assert len(written) == 3
    file.keep()
    file.keep()
    assert len(written) == 4


@pytest.mark.parametrize("damage", ["changed", "shortened"])
def test_a_damaged_one_is_left_aside_with_one_line(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = encode_unsealed(TOKENS)
    for place in range(len(whole)):
        content = whole[:place]
        if damage == "changed":
            content += bytes([whole[place] ^ 1]) + whole[place + 1 :]
        (tmp_path / FILE).write_bytes(content)
        assert UnsealedTokens(tmp_path).read(INDEX) is None
        assert len(caplog.messages) == place + 1
    (line,) = set(caplog.messages)
    assert line.startswith(f"{tmp_path / FILE} is not used, its tokens are made again: ")


@pytest.mark.parametrize(
    "index",
    [
        replace(INDEX, source="another"),
        replace(INDEX, tokenizer="another"),
        replace(INDEX, seals=()),
        replace(INDEX, seals=INDEX.seals * 3),
        replace(INDEX, seals=(replace(INDEX.seals[0], train=Shard(5, "1" * 64)),)),
    ],
)
def test_one_of_other_seals_is_left_aside_with_one_line(
    index: ShardIndex, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_bytes(encode_unsealed(TOKENS))
    assert UnsealedTokens(tmp_path).read(index) is None
    (line,) = caplog.messages
    assert line.endswith("it follows other shards than those that are here")


def test_one_that_the_last_seal_holds_is_no_news(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_bytes(encode_unsealed(TOKENS))
    assert UnsealedTokens(tmp_path).read(replace(INDEX, seals=INDEX.seals * 2)) is None
    assert caplog.messages == []


def test_one_of_another_version_is_left_aside_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    body = encode_unsealed(TOKENS).partition(b"\n")[2].replace(b'"pieces"', b'"texts"')
    (tmp_path / FILE).write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    assert UnsealedTokens(tmp_path).read(INDEX) is None
    (line,) = caplog.messages
    assert line.endswith("it is of another version")


def test_one_that_cannot_be_read_is_left_aside_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_bytes(encode_unsealed(TOKENS))
    make_unreadable(monkeypatch, tmp_path / FILE, 5)
    assert UnsealedTokens(tmp_path).read(INDEX) is None
    (line,) = caplog.messages
    assert "Input/output error" in line


def test_an_index_is_the_same_to_it_before_and_after_it_was_written() -> None:
    index = replace(INDEX, seals=(replace(INDEX.seals[0], position={"turn": None, "at": (1, 2)}),))
    content = encode_index(index)
    assert encode_index(decode_index(content, "s", "t", "here")) == content
