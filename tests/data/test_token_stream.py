"""Tokens that arrive late change nothing but the time."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.data.loader import training_loader
from app.data.preparation import Preparation
from app.data.sample_order import WINDOW_SEQUENCES, BatchGeometry, SampleOrder
from app.data.shard_index import ShardIndex, Split
from app.data.sources import PinnedSource, pin_source
from app.data.token_need import PrepareProgress, TokenNeed
from app.data.token_progress import TokenProgress
from app.data.token_stream import OutOfData, TokenStream
from app.data.tokenization import ShardMaker
from app.data.tokenizer import TokenizerFiles
from app.errors import AppError, NotFound, Unavailable
from app.settings.variables import DataSettings
from tests.support.small_corpus import SHARD, SMALL_BATCHES, rows, tokenizer

__all__ = ["tokenizer"]

ROWS = rows(800)
SEQ_LEN = 8
GEOMETRY = BatchGeometry(batch_size=16, global_batch_size=64, seq_len=SEQ_LEN)


class Gate:
    """Lets the tokenizer make one shard each time that somebody waits for one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wanted = threading.Event()
        self.failure: Exception | None = None
        extend = ShardMaker.extend

        def when_wanted(
            tokenizer: ShardMaker, index: ShardIndex, done: Any
        ) -> Iterator[ShardIndex]:
            for made in extend(tokenizer, index, done):
                yield made
                self.wanted.wait()
                self.wanted.clear()
                if self.failure:
                    raise self.failure

        monkeypatch.setattr(ShardMaker, "extend", when_wanted)


class PatientProgress(TokenProgress):
    """Opens the gate, or does what a test wants done while it waits."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self.act = act
        self.waits = 0

    def waiting(self, progress: PrepareProgress) -> None:
        self.waits += 1
        self.act()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


class OwnStream(TokenStream):
    """The tokens of a preparation of its own."""

    preparation: Preparation


MakeStream = Callable[..., OwnStream]


@pytest.fixture
def make(tmp_path: Path, tokenizer: TokenizerFiles) -> Iterator[MakeStream]:
    made: list[OwnStream] = []

    def make_one(
        name: str,
        act: Callable[[], None] = lambda: None,
        rows: int = len(ROWS),
        stopping: Callable[[], bool] = lambda: False,
        **need: Any,
    ) -> OwnStream:
        path = tmp_path / f"{rows}.jsonl"
        if not path.exists():
            path.write_text("".join(json.dumps({"text": row}) + "\n" for row in ROWS[:rows]))
        data = DataSettings(dataset=str(path), data_dir=tmp_path / name)
        preparation = Preparation(
            pin_source(data),
            tokenizer,
            TokenNeed(**need),
            shard_tokens=SHARD,
            limits=SMALL_BATCHES,
        )
        stream = OwnStream(preparation, PatientProgress(act), stopping, seed=5, seq_len=SEQ_LEN)
        made.append(stream)
        return stream

    yield make_one
    for stream in made:
        stream.close()


def shown(stream: OwnStream, samples: int, workers: int = 0) -> list[list[int]]:
    """The tokens of the first samples, batch by batch."""
    loader = training_loader(
        stream.train,
        stream.sequences,
        GEOMETRY,
        0,
        samples // GEOMETRY.global_batch_size,
        num_workers=workers,
        pin_memory=False,
        recover=stream.recover,
    )
    return [row.tolist() for batch in loader for row in batch]


def n_sequences(stream: OwnStream) -> int:
    return (stream.preparation.index.n_tokens("train") - 1) // SEQ_LEN


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_late_tokens_are_shown_in_the_same_order_over_epochs_and_by_any_number_of_workers(
    workers: int, make: MakeStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = make("early")
    early.preparation.run()
    n = n_sequences(early)
    assert 2 * WINDOW_SEQUENCES < n < 4 * WINDOW_SEQUENCES
    samples = (2 * n + 100) // 64 * 64
    tokens = early.train.read(0, early.train.n_tokens)
    order = SampleOrder(n, 5)
    expected = [
        tokens[order.sequence_at(i) * SEQ_LEN :][: SEQ_LEN + 1].tolist() for i in range(samples)
    ]
    gate = Gate(monkeypatch)
    late = make("late", act=gate.wanted.set)
    late.preparation.start()
    late.preparation.wait_for("train", SEQ_LEN + 1, lambda _: None)
    assert not late.preparation.index.complete
    assert shown(late, samples, workers) == expected
    assert late.preparation.index == early.preparation.index
    assert shown(early, samples, workers) == expected


def test_a_corpus_smaller_than_a_window_is_waited_for_and_shown_whole(make: MakeStream) -> None:
    stream = make("small", rows=60)
    stream.preparation.start()
    n = int(stream.sequences(0, 1).size and n_sequences(stream))
    assert 0 < n < WINDOW_SEQUENCES
    assert sorted(stream.sequences(0, n).tolist()) == list(range(n))
    assert sorted(stream.sequences(n, n).tolist()) == list(range(n))


def test_the_validation_set_is_the_same_whenever_it_is_asked_for(
    make: MakeStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = make("early")
    early.preparation.run()
    held_out = early.preparation.validation.n_tokens
    sizes = (64, 200, held_out - 1, held_out, 10 * held_out)
    expected = [[b.tolist() for b in early.validation(4, size)] for size in sizes]
    gate = Gate(monkeypatch)
    for size, batches in zip(sizes, expected, strict=True):
        late = make(f"late-{size}", act=gate.wanted.set)
        late.preparation.start()
        assert [b.tolist() for b in late.validation(4, size)] == batches
    assert expected[2] == expected[4][: len(expected[2])]


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_that_are_cut_while_they_are_shown_are_made_again(
    workers: int, make: MakeStream
) -> None:
    stream = make("cut")
    stream.preparation.run()
    expected = shown(stream, 2048), [b.tolist() for b in stream.validation(4, 500)]
    stream.sequences(0, 2048)
    validation = stream.validation(4, 500)
    for path in stream.preparation.directory.glob("*.bin"):
        os.truncate(path, path.stat().st_size // 3)
    assert ([b.tolist() for b in validation], shown(stream, 2048, workers)) == expected[::-1]


def test_what_cannot_be_made_again_is_a_lack_of_data(make: MakeStream, tmp_path: Path) -> None:
    stream = make("lost")
    stream.preparation.run()
    shown(stream, 64)
    (stream.preparation.directory / "train-00000.bin").unlink()
    (tmp_path / f"{len(ROWS)}.jsonl").unlink()
    with pytest.raises(OutOfData) as end:
        shown(stream, 64)
    assert isinstance(end.value.__cause__, NotFound)


def test_what_ends_the_preparation_is_raised_only_where_tokens_are_missing(
    make: MakeStream, gate: Gate
) -> None:
    def fail() -> None:
        gate.failure = OSError(28, "No space left on device")
        gate.wanted.set()

    stream = make("full", act=fail)
    stream.preparation.start()
    with pytest.raises(OutOfData) as end:
        stream.sequences(0, 1)
    assert isinstance(end.value.__cause__, Unavailable)
    assert "is full" in str(end.value.__cause__)
    there = stream.preparation.index.n_tokens("train")
    assert there > SHARD
    assert len(stream.train.read(0, there)) == there
    stream.preparation.require("train", np.array([0]), there, lambda _: None)


def test_what_comes_just_before_the_end_of_the_preparation_is_there(make: MakeStream) -> None:
    data = make("last").preparation
    runs = iter([data.run])

    class IndexBeforeTheEnd(ShardIndex):
        """After it has been asked for the first time, all of the work is done."""

        def n_tokens(self, split: Split) -> int:
            n_tokens = super().n_tokens(split)
            for run in runs:
                run()
            return n_tokens

    data.index = IndexBeforeTheEnd(data.index.source, data.index.tokenizer)
    assert data.wait_for("train", SHARD, lambda _: None).n_tokens("train") >= SHARD


@pytest.mark.parametrize("failure", [MemoryError(), ValueError("a position that is none")])
def test_a_failure_that_we_have_no_name_for_is_a_lack_of_data_too(
    failure: Exception, make: MakeStream, gate: Gate
) -> None:
    gate.failure = failure
    stream = make("odd", act=gate.wanted.set)
    stream.preparation.start()
    with pytest.raises(OutOfData) as end:
        stream.sequences(0, 1)
    assert end.value.__cause__ is failure


def test_a_need_that_was_too_little_is_an_error_of_ours(make: MakeStream) -> None:
    stream = make("little")
    stream.preparation.need = TokenNeed(stop=SHARD)
    stream.preparation.run()
    with pytest.raises(AppError, match=r"TokenNeed\(start=0, stop=3000, .* was too little"):
        stream.preparation.wait_for("train", 10**6, lambda _: None)


def test_a_stop_request_ends_the_waiting(make: MakeStream, gate: Gate) -> None:
    stream = make("stopped", stopping=lambda: True)
    stream.preparation.start()
    with pytest.raises(OutOfData) as end:
        stream.sequences(0, 1)
    assert end.value.__cause__ is None


def test_of_two_on_one_folder_the_second_reads_what_the_first_has_sealed(
    make: MakeStream, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make("shared")
    first.preparation.start()
    first.preparation.wait_for("train", SHARD, lambda _: None)
    monkeypatch.setattr(PinnedSource, "pieces", None)
    second = make("shared", act=gate.wanted.set)
    second.preparation.start()
    assert sorted(second.sequences(0, WINDOW_SEQUENCES).tolist()) == list(range(WINDOW_SEQUENCES))
    assert not first.preparation.index.complete
    assert not second.preparation.progress.tokens_made


def test_the_second_goes_on_where_the_first_ends(make: MakeStream, gate: Gate) -> None:
    first = make("shared")
    first.preparation.start()
    first.preparation.wait_for("train", SHARD, lambda _: None)
    second = make("shared", act=gate.wanted.set)
    second.preparation.start()
    first.close()
    gate.wanted.set()
    index = second.preparation.wait_for("train", 10**9, lambda _: gate.wanted.set())
    assert index.complete
    assert second.preparation.progress.tokens_made
    assert replace(index, seals=index.seals[:1], complete=False) == index.first(1)
