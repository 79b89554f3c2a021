"""A corpus of short documents, which small batches and shards of 3,000 tokens make a long one."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.data.limits import DataLimits
from app.data.pieces import Piece, PlacedPieces, held_out
from app.data.preparation import Preparation
from app.data.sources import pin_source
from app.data.token_need import PrepareProgress, TokenNeed
from app.data.tokenizer import TokenizerFiles, read_tokenizer
from app.settings.variables import DataSettings

SHARD = 3000
SMALL_BATCHES = DataLimits(batch_characters=1000)


def rows(count: int) -> list[str]:
    return [f"document {i}: " + "some words to be counted " * (i % 7) for i in range(count)]


ROWS = rows(400)


@pytest.fixture(scope="module")
def tokenizer(small_tokenizer: Path) -> TokenizerFiles:
    return read_tokenizer(small_tokenizer, "TOKENIZER=small")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in ROWS))
    return path


def prepare_corpus(
    corpus: Path,
    data_dir: Path,
    tokenizer: TokenizerFiles,
    needed: int | None = None,
    report: Callable[[PrepareProgress], None] = lambda _: None,
    validation: int = 0,
    limits: DataLimits = SMALL_BATCHES,
    is_held_out: Callable[[str], bool] = held_out,
    clock: Callable[[], float] = time.monotonic,
) -> Preparation:
    """At least `needed` training tokens of `corpus` (None: all of it), in small shards."""
    made = Preparation(
        pin_source(DataSettings(dataset=str(corpus), data_dir=data_dir), limits=limits),
        tokenizer,
        TokenNeed(stop=needed, validation=validation),
        report=report,
        shard_tokens=SHARD,
        limits=limits,
        is_held_out=is_held_out,
        clock=clock,
    )
    made.run()
    return made


def numbered_pieces(pieces: list[Piece]) -> PlacedPieces:
    """A source that gives `pieces`; its position is the number of the last one, from 1 on."""
    return PlacedPieces(((piece, {"piece": n}) for n, piece in enumerate(pieces, start=1)), None)
