"""What a preparation leaves behind that ends before its time, and what the next one makes of it."""

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.data.data_dir import write_durably
from app.data.limits import DataLimits
from app.data.pieces import Placed
from app.data.preparation import Preparation
from app.data.readers import file_pieces
from app.data.shard_index import Tally, read_index
from app.data.sources import PinnedSource, pin_source
from app.data.token_need import TokenNeed
from app.data.tokenization import in_order
from app.data.tokenizer import TokenizerFiles
from app.data.unsealed import FILE, Unsealed, UnsealedTokens
from app.errors import AccessDenied, Damaged, Unavailable
from app.settings.variables import DataSettings
from tests.support.prepared import Killed, prepared_files
from tests.support.small_corpus import rows, tokenizer

__all__ = ["tokenizer"]

ROWS = rows(30)
BOOK = "".join(f"line {n} of a book\n" for n in range(100))
DATASETS = ["a.jsonl", "b.txt", "a.jsonl:2,b.txt:1"]
SHARD = 400  # tokens, of some batches each


class Source:
    """Texts that were read, and positions that were asked for. `good`: pieces before it fails."""

    failure: BaseException = Unavailable("the source is away")
    limits = DataLimits(batch_characters=300, close_seconds=60.0, piece_size=64, document_bytes=64)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.good: int | None = None
        self.read: list[str] = []
        self.asked: list[Any] = []
        (folder / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in ROWS))
        (folder / "b.txt").write_text(BOOK)

    def pieces(self, *arguments: Any) -> Iterator[Placed]:
        placed = file_pieces(*arguments)
        while True:
            if self.good == 0:
                raise self.failure
            found = next(placed, None)
            if found is None:
                return
            self.good = self.good and self.good - 1
            self.read.append(found[0].text)
            yield found

    def preparation(self, name: str, tokenizer: TokenizerFiles) -> Preparation:
        data = DataSettings(dataset=self.dataset, data_dir=self.folder / name)
        return Preparation(
            pin_source(data, limits=self.limits),
            tokenizer,
            TokenNeed(),
            shard_tokens=SHARD,
            limits=self.limits,
            is_held_out=lambda text: "3" in text[:12],
        )

    def run(self, name: str, tokenizer: TokenizerFiles, good: int | None = None) -> dict[str, str]:
        """Prepare in the folder `name`: what is there afterwards."""
        self.good = good
        if good is None:
            self.preparation(name, tokenizer).run()
        else:
            with pytest.raises(type(self.failure)) as raised:
                self.preparation(name, tokenizer).run()
            assert raised.value is self.failure
        return prepared_files(self.folder / name)

    @property
    def dataset(self) -> str:
        return ",".join(f"{self.folder}/{part}" for part in self.parts.split(","))

    parts = "a.jsonl"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    made, pieces = Source(tmp_path), PinnedSource.pieces

    def asked(self: PinnedSource, after: Any = None) -> Any:
        made.asked.append(after)
        return pieces(self, after)

    monkeypatch.setattr(PinnedSource, "pieces", asked)
    monkeypatch.setattr("app.data.files.file_pieces", made.pieces)
    return made


def kept(source: Source, name: str) -> Path:
    (directory,) = (source.folder / name / "tokens").iterdir()
    return directory / FILE


@pytest.mark.parametrize("parts", DATASETS)
def test_after_a_failure_at_any_piece_the_rest_is_read_and_the_files_are_the_same(
    parts: str, source: Source, tokenizer: TokenizerFiles
) -> None:
    source.parts = parts
    straight, texts = source.run("straight", tokenizer), source.read
    assert len([name for name in straight if name.startswith("train-")]) > 2
    assert any(name.startswith("validation-") for name in straight)
    for good in range(len(texts) + 1):
        source.read = []
        source.run(f"{good}", tokenizer, good)
        assert source.run(f"{good}", tokenizer) == straight
        assert source.read == texts, good
        assert not kept(source, f"{good}").exists()


@pytest.mark.parametrize("parts", DATASETS)
@pytest.mark.parametrize("good", [1, 7])
def test_a_source_that_fails_again_and_again_is_read_to_its_end_and_nothing_twice(
    parts: str, good: int, source: Source, tokenizer: TokenizerFiles
) -> None:
    source.parts = parts
    straight, texts = source.run("straight", tokenizer), source.read
    source.read, source.asked = [], []
    while len(source.read) < len(texts):
        source.run("often", tokenizer, good=min(good, len(texts) - len(source.read)))
    assert source.run("often", tokenizer) == straight
    assert source.read == texts
    assert len(source.asked) == -(-len(texts) // good) + 1
    assert not any(one == other for one, other in zip(source.asked, source.asked[1:], strict=False))


def test_a_source_that_refuses_access_costs_no_token_either(
    source: Source, tokenizer: TokenizerFiles
) -> None:
    straight, texts = source.run("straight", tokenizer), source.read
    source.read, source.failure = [], AccessDenied("the key has expired")
    source.run("denied", tokenizer, good=13)
    assert source.run("denied", tokenizer) == straight
    assert source.read == texts


def test_of_a_source_that_changed_nothing_is_kept(
    source: Source, tokenizer: TokenizerFiles
) -> None:
    source.run("data", tokenizer, good=20)
    assert kept(source, "data").exists()
    source.limits = replace(source.limits, keep_seconds=0.0)
    source.failure = Damaged("the file was changed while it was read")
    source.run("data", tokenizer, good=7)
    assert not kept(source, "data").exists()


@pytest.mark.parametrize(("failure", "given"), [(Unavailable("away"), 2), (Damaged("changed"), 0)])
def test_batches_in_flight_are_taken_of_a_source_that_went_away_and_not_of_one_that_changed(
    failure: Exception, given: int
) -> None:
    def texts() -> Iterator[str]:
        yield from ["text", "more"]
        raise failure

    taken = []
    with pytest.raises(type(failure)):
        for text in in_order(str.upper, texts(), 2):
            taken.append(text)
    assert len(taken) == given


def test_an_interruption_costs_the_batches_in_flight_alone(
    source: Source, tokenizer: TokenizerFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, texts = source.run("straight", tokenizer), source.read
    source.read, source.failure = [], Killed()
    source.run("stopped", tokenizer, good=30)
    in_flight, before = len(" ".join(source.read)), source.read
    source.read = []
    assert source.run("stopped", tokenizer) == straight
    again = set(before) & set(source.read)
    assert len(" ".join(again)) <= 4 * 400 < in_flight
    assert len(before) + len(source.read) == len(texts) + len(again)


def test_closed_while_the_source_hangs_it_keeps_what_it_had(
    source: Source, tokenizer: TokenizerFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = source.run("straight", tokenizer)
    hangs, goes_on = threading.Event(), threading.Event()
    pieces = source.pieces

    def hanging(*arguments: Any) -> Iterator[Placed]:
        for number, placed in enumerate(pieces(*arguments)):
            if number == 27:
                hangs.set()
                assert goes_on.wait(60)
            yield placed

    with monkeypatch.context() as patched:
        patched.setattr("app.data.files.file_pieces", hanging)
        data = source.preparation("closed", tokenizer)
        data.start()
        assert hangs.wait(60)
        data.close()
        there = read_index(data.directory, data.index.source, data.index.tokenizer)
        assert kept(source, "closed").exists()
        goes_on.set()
        with data._changed:
            assert data._changed.wait_for(lambda: data._done, 60)
    assert source.run("closed", tokenizer) == straight
    assert source.asked[-1]["line"] > (there.tally.position or {"line": 0})["line"]


@pytest.mark.parametrize("when", ["before", "within", "after"])
def test_a_kill_at_any_write_costs_what_was_written_since_the_one_before(
    when: str, source: Source, tokenizer: TokenizerFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is written after each batch: a slow source, whose batches take that long."""
    straight, texts = source.run("straight", tokenizer), source.read
    source.limits = replace(source.limits, keep_seconds=0.0)
    source.failure = Killed()
    writes, last = 0, 0

    def write(path: Path, data: Any) -> None:
        nonlocal writes
        writes += 1
        if writes < last or (writes == last and when == "after"):
            write_durably(path, data)
        elif writes == last and when == "within":
            path.with_name(path.name + ".partial").write_bytes(bytes(data)[: len(data) // 2])
        if writes >= last:  # nothing is written by the dead
            raise source.failure

    for room in ("data.shard_index", "data.shards", "data.unsealed"):
        monkeypatch.setattr(f"app.{room}.write_durably", write)
    for kill in range(1, 100):
        writes, last, source.read = 0, kill, []
        try:
            source.preparation("killed-" + str(kill), tokenizer).run()
        except Killed:
            pass
        else:
            break
        writes, last = 0, 10**6
        assert source.run(f"killed-{kill}", tokenizer) == straight
        assert len("".join(source.read)) <= len("".join(texts)) + 2 * 500
    assert kill > 10


def test_a_shard_that_could_not_be_sealed_is_sealed_by_the_next_start(
    source: Source, tokenizer: TokenizerFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = source.run("straight", tokenizer)
    directory = kept(source, "straight").parent
    index = read_index(directory, *json_fingerprints(directory))

    def full(path: Path, data: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(Unavailable, match="is full"):
        patched.setattr("app.data.shards.write_durably", full)
        source.preparation("full", tokenizer).run()
    assert source.run("full", tokenizer) == straight
    assert source.asked[-1] == index.seals[0].position


def json_fingerprints(directory: Path) -> tuple[str, str]:
    index = json.loads((directory / "index.json").read_text())
    return index["source"], index["tokenizer"]


def test_a_disk_that_takes_no_file_hides_nothing_and_leaves_nothing(
    source: Source,
    tokenizer: TokenizerFiles,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("app.data.data_dir.os.fsync", full)
        source.run("full", tokenizer, good=7)
    (line,) = caplog.messages
    assert line.startswith(f"{kept(source, 'full')} is not written") and "No space left" in line
    assert [path.name for path in kept(source, "full").parent.iterdir()] == [".lock"]
    assert source.run("full", tokenizer) == source.run("straight", tokenizer)


def test_what_is_taken_up_is_said_and_is_not_counted_as_made_now(
    source: Source, tokenizer: TokenizerFiles, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source.run("data", tokenizer, good=7)
    source.good = None
    data = source.preparation("data", tokenizer)
    data.run()
    (line,) = [line for line in caplog.messages if "in no shard yet" in line]
    before = int(line.split()[0])
    assert data.progress.tokens_made < data.train.n_tokens
    assert data.progress.tokens_made + before >= data.train.n_tokens > before > 0


def test_a_shard_is_made_again_from_the_source_alone(
    source: Source, tokenizer: TokenizerFiles
) -> None:
    straight = source.run("data", tokenizer)
    directory = kept(source, "data").parent
    index = read_index(directory, *json_fingerprints(directory))
    wrong = UnsealedTokens(directory)
    tally = Tally(index.seals[1].position, index.seals[1].pieces, 9, 9)
    wrong.note(
        Unsealed(index.first(1), tally, {"train": [np.ones(SHARD, np.uint16)], "validation": []})
    )
    wrong.keep()
    (directory / "train-00001.bin").unlink()
    assert source.run("data", tokenizer) == straight
