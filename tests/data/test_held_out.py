"""Which text is held out for validation: a document as a whole, and the same one each time."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from app.data.limits import DataLimits
from app.data.pieces import Piece, held_out
from app.data.sources import PinnedSource
from app.data.tokenizer import TokenizerFiles
from tests.support.prepared import decoded_splits, prepared_files
from tests.support.small_corpus import (
    ROWS,
    SHARD,
    SMALL_BATCHES,
    corpus,
    numbered_pieces,
    prepare_corpus,
    tokenizer,
)

__all__ = ["corpus", "tokenizer"]

HELD_OUT = [text for text in (f"text {n} " * 20 for n in range(2000)) if held_out(text)]


def says_held(text: str) -> bool:
    return "HELD" in text


def write_texts(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_what_is_held_out_does_not_depend_on_validation_settings(
    corpus: Path, tmp_path: Path, tokenizer: TokenizerFiles
) -> None:
    prepare_corpus(corpus, tmp_path / "off", tokenizer)
    prepare_corpus(corpus, tmp_path / "on", tokenizer, validation=1000)
    assert prepared_files(tmp_path / "off") == prepared_files(tmp_path / "on")


def test_parts_of_a_long_text_are_joined_and_a_held_out_part_leaves_a_border(
    tmp_path: Path, tokenizer: TokenizerFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [
        Piece("one ", ends_document=False),
        Piece("two ", starts_document=False, ends_document=False),
        Piece("HELD", starts_document=False, ends_document=False),
        Piece("three", starts_document=False),
        Piece(""),
        Piece("HELD alone"),
        Piece("four"),
    ]
    monkeypatch.setattr(PinnedSource, "pieces", lambda self, after: numbered_pieces(parts))
    (tmp_path / "a.txt").touch()
    data = prepare_corpus(tmp_path / "a.txt", tmp_path, tokenizer, is_held_out=says_held)
    train, validation = decoded_splits(data, tokenizer)
    assert train == ["one two ", "three", "four"]
    assert validation == ["HELD", "HELD alone"]


@pytest.mark.parametrize("batch", [1, 10**6])
def test_a_long_text_that_is_held_out_as_a_whole_leaves_no_border(
    tmp_path: Path, tokenizer: TokenizerFiles, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    parts = [
        Piece("one", ends_document=False, held_out=False),
        Piece(" HELD", starts_document=False, held_out=False),
        Piece("two ", ends_document=False, held_out=True),
        Piece("three ", starts_document=False, ends_document=False, held_out=True),
        Piece("four", starts_document=False, held_out=True),
        Piece("five"),
    ]
    monkeypatch.setattr(PinnedSource, "pieces", lambda self, after: numbered_pieces(parts))
    (tmp_path / "a.txt").touch()
    limits = DataLimits(batch_characters=batch)
    data = prepare_corpus(
        tmp_path / "a.txt", tmp_path, tokenizer, limits=limits, is_held_out=says_held
    )
    train, validation = decoded_splits(data, tokenizer)
    assert train == ["one HELD", "five"]
    assert validation == ["two three four"]


def test_the_same_text_is_in_the_same_split_in_every_kind_of_file_and_each_time(
    tmp_path: Path, tokenizer: TokenizerFiles
) -> None:
    texts = [HELD_OUT[0] * 50, *ROWS[:150]]
    held = next(t for t in (f"{n}\n" + "x y z\n" * 2000 for n in range(2000)) if held_out(t))
    (tmp_path / "in").mkdir()
    write_texts(tmp_path / "in" / "a.jsonl", [HELD_OUT[0], held, *texts, HELD_OUT[0]])
    for number, text in enumerate([held, HELD_OUT[0], *texts]):
        (tmp_path / "in" / f"{number:03d}.txt").write_text(text)
    train, validation = decoded_splits(
        prepare_corpus(tmp_path / "in", tmp_path, tokenizer), tokenizer
    )
    assert not set(train) & set(validation)
    assert validation.count(held) == 2
    assert validation.count(HELD_OUT[0]) == 3


def test_a_long_row_is_held_out_to_its_end_after_a_kill_too(
    tmp_path: Path, tokenizer: TokenizerFiles
) -> None:
    """Shards end inside both long rows, and the work goes on there."""
    limits = replace(SMALL_BATCHES, long_row=10_000, piece_size=100)
    held = next(t for t in (f"{n}\n" + "x y z\n" * 3000 for n in range(2000)) if held_out(t))
    trained = held.replace("z", "w")
    assert not held_out(trained)
    corpus = write_texts(tmp_path / "a.jsonl", [*ROWS[:40], held, trained, "end"])
    straight = prepare_corpus(corpus, tmp_path / "straight", tokenizer, limits=limits)
    train, validation = decoded_splits(straight, tokenizer)
    assert train == [row for row in [*ROWS[:40], trained, "end"] if not held_out(row)]
    assert validation == [row for row in ROWS[:40] if held_out(row)] + [held]
    assert any((seal.position or {}).get("part") for seal in straight.index.seals)
    needed = 0
    while not prepare_corpus(
        corpus, tmp_path / "killed", tokenizer, needed=needed, limits=limits
    ).index.complete:
        needed += SHARD
    assert needed > 4 * SHARD
    assert prepared_files(tmp_path / "killed") == prepared_files(tmp_path / "straight")


@pytest.mark.parametrize("long_row", [10, 10**6])
@pytest.mark.parametrize(
    "texts",
    [HELD_OUT[:1], ["", "", *HELD_OUT[:1], ""], HELD_OUT[:3]],
    ids=["one", "one between empty ones", "three"],
)
def test_a_dataset_of_which_all_is_held_out_is_trained_on_instead(
    tmp_path: Path,
    tokenizer: TokenizerFiles,
    monkeypatch: pytest.MonkeyPatch,
    texts: list[str],
    long_row: int,
) -> None:
    limits = DataLimits(long_row=long_row, piece_size=5, batch_characters=30, validation_tokens=20)
    write_texts(tmp_path / "a.jsonl", texts)
    data = prepare_corpus(tmp_path / "a.jsonl", tmp_path, tokenizer, limits=limits)
    codec = Tokenizer.from_file(str(tokenizer.directory / "tokenizer.json"))
    ids = data.train.read(0, data.train.n_tokens).tolist()
    assert codec.decode(ids, skip_special_tokens=False) == "".join(
        text + "<|endoftext|>" for text in texts if text
    )
    assert data.validation.n_tokens == 0
    next(tmp_path.rglob("train-00000.bin")).unlink()
    again = prepare_corpus(tmp_path / "a.jsonl", tmp_path, tokenizer, limits=limits)
    assert again.train.read(0, len(ids)).tolist() == ids


def test_a_stream_of_which_each_part_is_held_out_is_trained_on_instead(
    tmp_path: Path, tokenizer: TokenizerFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [Piece("a", ends_document=False), Piece("b", starts_document=False)]
    monkeypatch.setattr(PinnedSource, "pieces", lambda self, after: numbered_pieces(parts))
    (tmp_path / "a.txt").touch()
    data = prepare_corpus(tmp_path / "a.txt", tmp_path, tokenizer, is_held_out=lambda text: True)
    assert data.train.n_tokens == 4
    assert data.validation.n_tokens == 0


@pytest.mark.parametrize("long_row", [10, 10**6])
def test_the_first_text_is_held_out_as_any_other_where_there_is_another(
    tmp_path: Path, tokenizer: TokenizerFiles, long_row: int
) -> None:
    limits = replace(SMALL_BATCHES, long_row=long_row)
    texts = ["", HELD_OUT[0], "", "other", HELD_OUT[0]]
    data = prepare_corpus(
        write_texts(tmp_path / "a.jsonl", texts), tmp_path, tokenizer, limits=limits
    )
    assert decoded_splits(data, tokenizer) == (["other"], [HELD_OUT[0]] * 2)


def test_validation_stops_at_its_cap(
    corpus: Path, tmp_path: Path, tokenizer: TokenizerFiles
) -> None:
    whole = prepare_corpus(corpus, tmp_path / "whole", tokenizer)
    limits = replace(SMALL_BATCHES, validation_tokens=200)
    capped = prepare_corpus(corpus, tmp_path / "capped", tokenizer, limits=limits)
    assert 200 < capped.validation.n_tokens < 300 < whole.validation.n_tokens
    assert capped.train.n_tokens == whole.train.n_tokens
