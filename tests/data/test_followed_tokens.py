"""The tokens that a neighbour on the same machine makes."""

from pathlib import Path

import numpy as np
import pytest

from app.data.followed_tokens import FollowedTokens
from app.data.shard_index import ShardIndex, Tally, write_index
from app.data.shards import ShardWriter
from app.data.token_need import PrepareProgress
from app.data.tokenizer import TokenizerFiles

TOKENIZER = TokenizerFiles(Path("/none"), "t", 300, 0, None)
STARTS = np.array([90, 190], dtype=np.int64)


class Stopped(Exception):
    """Raised by a callback that is asked to wait for what never comes."""


class Neighbour:
    """The process that makes the tokens: 100 of them with each seal."""

    def __init__(self, directory: Path) -> None:
        self._writer = ShardWriter(directory, ShardIndex(source="s", tokenizer="t"))

    def seal(self) -> None:
        self._writer.append("train", np.arange(100, dtype=np.uint16))
        self._writer.seal(Tally(position=None, pieces=1, documents=1))

    @property
    def index(self) -> ShardIndex:
        return self._writer.index


def never(progress: PrepareProgress) -> None:
    raise Stopped


def test_tokens_are_waited_for_until_the_neighbour_has_sealed_them(tmp_path: Path) -> None:
    neighbour = Neighbour(tmp_path)
    neighbour.seal()
    tokens = FollowedTokens(tmp_path, "s", TOKENIZER)
    assert tokens.wait_for("train", 100, never).n_tokens("train") == 100
    asked: list[int] = []

    def seals(progress: PrepareProgress) -> None:
        asked.append(progress.tokens)
        neighbour.seal()

    assert tokens.wait_for("train", 250, seals).n_tokens("train") == 300
    assert asked == [100, 200]
    assert tokens.train.read(150, 3).tolist() == [50, 51, 52]


def test_a_complete_corpus_is_not_waited_for(tmp_path: Path) -> None:
    neighbour = Neighbour(tmp_path)
    neighbour.seal()
    made = neighbour.index
    write_index(tmp_path, ShardIndex("s", "t", made.seals, complete=True))
    assert FollowedTokens(tmp_path, "s", TOKENIZER).wait_for("train", 10**6, never).complete


def test_an_index_that_is_damaged_for_a_moment_is_read_again(tmp_path: Path) -> None:
    neighbour = Neighbour(tmp_path)
    neighbour.seal()
    tokens = FollowedTokens(tmp_path, "s", TOKENIZER)
    (tmp_path / "index.json").write_text("{")

    def mends(progress: PrepareProgress) -> None:
        neighbour.seal()

    assert tokens.wait_for("train", 200, mends).n_tokens("train") == 200


@pytest.mark.parametrize("deed", ["removed", "changed"])
def test_a_shard_that_is_lost_or_changed_is_waited_for_until_the_neighbour_has_it_again(
    deed: str, tmp_path: Path
) -> None:
    neighbour = Neighbour(tmp_path)
    for _ in range(3):
        neighbour.seal()
    tokens = FollowedTokens(tmp_path, "s", TOKENIZER)
    path = tmp_path / "train-00001.bin"
    whole = path.read_bytes()
    if deed == "removed":
        path.unlink()
    else:
        path.write_bytes(whole[:-1] + b"?")
    with pytest.raises(Stopped):
        tokens.require("train", STARTS, 20, never)

    def brings_again(progress: PrepareProgress) -> None:
        path.write_bytes(whole)

    tokens.require("train", STARTS, 20, brings_again)
    tokens.require("train", STARTS, 20, never)
    tokens.bring_again("train", STARTS, 20, never)
