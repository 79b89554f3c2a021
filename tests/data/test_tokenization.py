import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.data.data_dir import write_durably
from app.data.limits import DataLimits
from app.data.pieces import Piece, PlacedPieces, held_out
from app.data.preparation import Preparation
from app.data.sources import PinnedSource, pin_source
from app.data.token_need import PrepareProgress, TokenNeed
from app.data.tokenization import batches
from app.data.tokenizer import TokenizerFiles
from app.errors import AccessDenied, ConfigError, Damaged, Unavailable
from app.settings.variables import DataSettings
from tests.support.corpus_files import jsonl
from tests.support.prepared import Killed, decoded_splits, prepared_files
from tests.support.repository import ROOT
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


def test_every_document_is_in_one_split_in_order_and_ends_with_the_end_token(
    corpus: Path, tmp_path: Path, tokenizer: TokenizerFiles
) -> None:
    data = prepare_corpus(corpus, tmp_path, tokenizer)
    train, validation = decoded_splits(data, tokenizer)
    assert data.index.complete
    assert train == [row for row in ROWS if not held_out(row)]
    assert validation == [row for row in ROWS if held_out(row)]
    assert 0 < len(validation) < 20


def test_the_index_knows_the_bytes_of_the_text(
    corpus: Path, tmp_path: Path, tokenizer: TokenizerFiles
) -> None:
    prepare_corpus(corpus, tmp_path, tokenizer, needed=SHARD)
    prepare_corpus(corpus, tmp_path, tokenizer)
    (path,) = tmp_path.glob("tokens/*/index.json")
    assert json.loads(path.read_text())["text_bytes"] == sum(len(row.encode()) for row in ROWS)


def test_a_batch_ends_after_a_number_of_pieces_too() -> None:
    made = batches(numbered_pieces([Piece("")] * 7), DataLimits(batch_pieces=3))
    assert [(len(b.texts), b.position) for b in made] == [
        (3, {"piece": 3}),
        (3, {"piece": 6}),
        (1, {"piece": 7}),
    ]


def test_text_that_spells_the_end_of_text_is_text_and_one_line_says_so(
    tmp_path: Path, tokenizer: TokenizerFiles, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.jsonl"
    rows = [f"{number} <|endoftext|> two" for number in range(300)]
    path.write_bytes(jsonl(rows))
    train, validation = decoded_splits(prepare_corpus(path, tmp_path, tokenizer), tokenizer)
    assert sorted(train + validation) == sorted(rows)
    lines = [message for message in caplog.messages if "<|endoftext|>" in message]
    assert len(lines) == 1 and lines[0].startswith(f"DATASET={path} spells the tokenizer's")


def test_a_second_start_reads_and_writes_nothing(
    corpus: Path, tmp_path: Path, tokenizer: TokenizerFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare_corpus(corpus, tmp_path, tokenizer)
    monkeypatch.setattr(PinnedSource, "pieces", None)
    monkeypatch.setattr("app.data.data_dir.fcntl.flock", None)
    second = prepare_corpus(corpus, tmp_path, tokenizer, needed=10**9)
    assert second.fingerprint == first.fingerprint
    assert second.train.n_tokens == first.train.n_tokens


def test_going_on_later_only_appends(
    corpus: Path, tmp_path: Path, tokenizer: TokenizerFiles
) -> None:
    some = prepare_corpus(corpus, tmp_path, tokenizer, needed=SHARD + 1)
    before = some.train.read(0, some.train.n_tokens)
    assert not some.index.complete
    assert SHARD < some.train.n_tokens < 3 * SHARD
    more = prepare_corpus(corpus, tmp_path, tokenizer)
    assert more.index.complete
    assert more.train.read(0, len(before)).tolist() == before.tolist()
    assert more.fingerprint == some.fingerprint
    prepare_corpus(corpus, tmp_path / "at-once", tokenizer)
    assert prepared_files(tmp_path / "at-once") == prepared_files(tmp_path)


def test_a_run_that_validates_gets_its_validation_tokens_at_the_start(
    corpus: Path, tmp_path: Path, tokenizer: TokenizerFiles
) -> None:
    little = prepare_corpus(corpus, tmp_path / "a", tokenizer, needed=10)
    enough = prepare_corpus(corpus, tmp_path / "b", tokenizer, needed=10, validation=300)
    assert enough.validation.n_tokens >= 300
    assert little.train.n_tokens < enough.train.n_tokens


def test_the_fingerprint_is_that_of_source_and_tokenizer(
    corpus: Path, tmp_path: Path, tokenizer: TokenizerFiles
) -> None:
    first = prepare_corpus(corpus, tmp_path, tokenizer).fingerprint
    assert prepare_corpus(corpus, tmp_path / "elsewhere", tokenizer, needed=5).fingerprint == first
    corpus.write_text('{"text": "another"}\n')
    assert prepare_corpus(corpus, tmp_path, tokenizer).fingerprint != first


@pytest.mark.parametrize("write", range(8))
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_any_write_leaves_the_same_bytes_in_the_end(
    corpus: Path,
    tmp_path: Path,
    tokenizer: TokenizerFiles,
    write: int,
    when: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare_corpus(corpus, tmp_path / "straight", tokenizer)
    calls = 0

    def kill(path: Path, data: Any) -> None:
        nonlocal calls
        calls += 1
        if when == "after" or calls <= write:
            write_durably(path, data)
        if calls == write + 1:
            path.with_name(path.name + ".partial").write_bytes(b"half")
            raise Killed

    with monkeypatch.context() as killed, pytest.raises(Killed):
        killed.setattr("app.data.shard_index.write_durably", kill)
        killed.setattr("app.data.shards.write_durably", kill)
        prepare_corpus(corpus, tmp_path / "killed", tokenizer)
    data = prepare_corpus(corpus, tmp_path / "killed", tokenizer)
    assert data.index.complete
    assert prepared_files(tmp_path / "killed") == prepared_files(tmp_path / "straight")


def test_sigkill_in_another_process_leaves_the_same_bytes_in_the_end(
    corpus: Path, tmp_path: Path, tokenizer: TokenizerFiles
) -> None:
    program = f"""
import os, signal
from pathlib import Path
from app.data import limits, preparation, shards, sources, token_need
from app.settings.variables import DataSettings
from app.data.tokenizer import read_tokenizer

seal = shards.ShardWriter.seal
def kill(self, *tally, **more):
    if self.index.pieces:
        os.kill(os.getpid(), signal.SIGKILL)
    seal(self, *tally, **more)
shards.ShardWriter.seal = kill
data = DataSettings(dataset={str(corpus)!r}, data_dir={str(tmp_path / "killed")!r})
tokenizer = read_tokenizer(Path({str(tokenizer.directory)!r}), "")
source = sources.pin_source(data)
need = token_need.TokenNeed()
limits = limits.DataLimits(batch_characters=1000)
preparation.Preparation(source, tokenizer, need, shard_tokens={SHARD}, limits=limits).run()
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(prepared_files(tmp_path / "killed")) >= 2
    prepare_corpus(corpus, tmp_path / "killed", tokenizer)
    prepare_corpus(corpus, tmp_path / "straight", tokenizer)
    assert prepared_files(tmp_path / "killed") == prepared_files(tmp_path / "straight")


def test_a_second_process_waits_and_then_uses_the_work_of_the_first(
    corpus: Path, tmp_path: Path, tokenizer: TokenizerFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_corpus(corpus, tmp_path / "first", tokenizer)
    (finished,) = (tmp_path / "first" / "tokens").iterdir()
    directory = tmp_path / "data" / "tokens" / finished.name
    directory.mkdir(parents=True)
    held = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    waits = 0

    def first_process_goes_on(_: float) -> None:
        nonlocal waits
        waits += 1
        if waits == 3:
            for path in finished.iterdir():
                if path.name != ".lock":
                    (directory / path.name).write_bytes(path.read_bytes())
            os.close(held)

    monkeypatch.setattr("app.data.data_dir.time.sleep", first_process_goes_on)
    monkeypatch.setattr(PinnedSource, "pieces", None)
    assert prepare_corpus(corpus, tmp_path / "data", tokenizer).index.complete
    assert waits == 3


def test_progress_is_reported_and_what_it_raises_ends_the_work(
    corpus: Path, tmp_path: Path, tokenizer: TokenizerFiles
) -> None:
    limits = replace(SMALL_BATCHES, report_seconds=0.0)
    seen: list[PrepareProgress] = []

    def report(progress: PrepareProgress) -> None:
        seen.append(progress)
        if progress.tokens > 2 * SHARD:
            raise Killed

    with pytest.raises(Killed):
        prepare_corpus(corpus, tmp_path / "stopped", tokenizer, 10**6, report, limits=limits)
    assert [p.tokens for p in seen] == sorted(p.tokens for p in seen)
    assert [p.tokens_made for p in seen] == [p.tokens for p in seen]
    assert 0 < seen[0].documents < seen[-1].documents < len(ROWS)
    assert seen[0].tokens_total == 10**6
    prepare_corpus(corpus, tmp_path / "stopped", tokenizer)
    prepare_corpus(corpus, tmp_path / "straight", tokenizer)
    assert prepared_files(tmp_path / "stopped") == prepared_files(tmp_path / "straight")


def test_progress_is_not_reported_more_often_than_every_two_seconds(
    corpus: Path, tmp_path: Path, tokenizer: TokenizerFiles
) -> None:
    now = 0.0

    def half_a_second_later() -> float:
        nonlocal now
        now += 0.5
        return now

    times: list[float] = []
    prepare_corpus(
        corpus,
        tmp_path,
        tokenizer,
        report=lambda _: times.append(now),
        clock=half_a_second_later,
    )
    assert len(times) > 3
    assert all(later - earlier >= 2.0 for earlier, later in pairwise(times))


@pytest.mark.parametrize("content", ["", '{"text": ""}\n{"text": null}\n'])
def test_a_dataset_without_text_is_refused_and_nothing_is_kept(
    tmp_path: Path, tokenizer: TokenizerFiles, content: str
) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text(content)
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"^DATASET={path} has no text to train on"):
            prepare_corpus(path, tmp_path, tokenizer)
    assert not prepared_files(tmp_path)


def read(data: Preparation, start: int, length: int) -> list[int]:
    """Training tokens, waited for and verified as a reader does."""
    data.require("train", np.array([start]), length, lambda _: None)
    return data.train.read(start, length).tolist()


@pytest.mark.parametrize("damage", ["changed", "shortened", "missing"])
def test_a_damaged_shard_is_made_again_when_it_is_needed(
    damage: str,
    corpus: Path,
    tmp_path: Path,
    tokenizer: TokenizerFiles,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = prepare_corpus(corpus, tmp_path, tokenizer).train.read(0, 3 * SHARD).tolist()
    whole = prepared_files(tmp_path)
    again = prepare_corpus(corpus, tmp_path, tokenizer)
    shard = next(tmp_path.rglob("train-00001.bin"))
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(b"\0" * (shard.stat().st_size - 2 * (damage == "shortened")))
    read(again, 0, 10)
    assert prepared_files(tmp_path) != whole
    assert read(again, 0, 3 * SHARD) == before
    assert prepared_files(tmp_path) == whole
    (line,) = caplog.messages
    assert line.startswith(str(shard)) and line.endswith(": made again from the source")


def test_a_stop_request_does_not_wait_for_a_shard_that_is_made_again(
    corpus: Path, tmp_path: Path, tokenizer: TokenizerFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_corpus(corpus, tmp_path, tokenizer)
    data = prepare_corpus(corpus, tmp_path, tokenizer)
    next(tmp_path.rglob("train-00001.bin")).unlink()
    released = threading.Event()

    def silent(source: PinnedSource, after: Any) -> PlacedPieces:
        assert released.wait(60)
        return numbered_pieces([])

    def stop(_: PrepareProgress) -> None:
        raise Killed

    monkeypatch.setattr(PinnedSource, "pieces", silent)
    with pytest.raises(Killed):
        data.require("train", np.array([0]), 3 * SHARD, stop)
    released.set()


def test_a_missing_shard_is_made_again_from_the_source(
    corpus: Path, tmp_path: Path, tokenizer: TokenizerFiles
) -> None:
    prepare_corpus(corpus, tmp_path, tokenizer)
    before = prepared_files(tmp_path)
    for name in ("train-00000.bin", "train-00002.bin", "validation-00001.bin"):
        next(tmp_path.rglob(name)).unlink()
    prepare_corpus(corpus, tmp_path, tokenizer, validation=10**6)
    assert prepared_files(tmp_path) == before


def test_a_source_that_changed_behind_its_fingerprint_is_refused(
    corpus: Path, tmp_path: Path, tokenizer: TokenizerFiles
) -> None:
    data = DataSettings(dataset=str(corpus), data_dir=tmp_path)
    prepare_corpus(corpus, tmp_path, tokenizer)
    next(tmp_path.rglob("train-00000.bin")).unlink()
    source, listed = pin_source(data), corpus.stat()
    corpus.write_text(corpus.read_text().replace("some words", "SOME WORDS"))
    os.utime(corpus, ns=(listed.st_atime_ns, listed.st_mtime_ns))
    again = Preparation(source, tokenizer, TokenNeed(), shard_tokens=SHARD, limits=SMALL_BATCHES)
    with pytest.raises(Damaged, match="does not give the tokens that it gave before"):
        again.run()


def test_a_file_that_is_added_after_the_fingerprint_was_taken_is_not_tokenized(
    corpus: Path, tmp_path: Path, tokenizer: TokenizerFiles
) -> None:
    prepare_corpus(corpus, tmp_path / "alone", tokenizer)
    folder = tmp_path / "folder"
    folder.mkdir()
    corpus.rename(folder / "corpus.jsonl")
    source = pin_source(DataSettings(dataset=str(folder), data_dir=tmp_path / "beside"))
    (folder / "added.txt").write_text("other words\n" * 1000)
    Preparation(source, tokenizer, TokenNeed(), shard_tokens=SHARD, limits=SMALL_BATCHES).run()
    assert prepared_files(tmp_path / "beside") == prepared_files(tmp_path / "alone")


def test_a_full_disk_is_unavailable_and_the_work_goes_on_when_there_is_room(
    corpus: Path, tmp_path: Path, tokenizer: TokenizerFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 3

    def fsync(_: int) -> None:
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("app.data.data_dir.os.fsync", fsync)
        with pytest.raises(Unavailable, match=f"^DATA_DIR={tmp_path / 'full'} is full"):
            prepare_corpus(corpus, tmp_path / "full", tokenizer)
    prepare_corpus(corpus, tmp_path / "full", tokenizer)
    prepare_corpus(corpus, tmp_path / "straight", tokenizer)
    assert prepared_files(tmp_path / "full") == prepared_files(tmp_path / "straight")


def test_a_data_dir_that_is_a_file_is_refused(
    corpus: Path, tmp_path: Path, tokenizer: TokenizerFiles
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigError, match=f"^DATA_DIR={tmp_path / 'file'} .* a file stands where a folder"
    ):
        prepare_corpus(corpus, tmp_path / "file", tokenizer)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_data_dir_that_may_not_be_written_is_access_denied(
    corpus: Path, tmp_path: Path, tokenizer: TokenizerFiles
) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(AccessDenied, match=f"^DATA_DIR={tmp_path / 'locked'} cannot be used"):
        prepare_corpus(corpus, tmp_path / "locked", tokenizer)
