"""A damaged index in DATA_DIR is set aside by the one process that writes, and made again."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from app.data.data_dir import locked_folder
from app.data.limits import DataLimits
from app.data.preparation import Preparation
from app.data.shard_index import INDEX, write_index
from app.data.sources import PinnedSource, pin_source
from app.data.token_need import PrepareProgress, TokenNeed
from app.data.tokenizer import TokenizerFiles
from app.errors import IncompatibleRun
from app.settings.variables import DataSettings
from tests.support.prepared import prepared_files
from tests.support.small_corpus import SHARD, SMALL_BATCHES, corpus, tokenizer
from tests.support.token_nodes import MakeNode, node, tokens_store

__all__ = ["corpus", "node", "tokenizer", "tokens_store"]

DAMAGED = b'{"format_version": 2, "seals": [{"tok'


Open = Callable[..., Preparation]


@pytest.fixture
def opened(corpus: Path, tmp_path: Path, tokenizer: TokenizerFiles) -> Open:
    """All of the corpus on its way, with a call of ours while another process writes."""

    def open_with(
        report: Callable[[], None] = lambda: None, limits: DataLimits = SMALL_BATCHES
    ) -> Preparation:
        def reported(_: PrepareProgress) -> None:
            report()

        data = DataSettings(dataset=str(corpus), data_dir=tmp_path)
        return Preparation(
            pin_source(data),
            tokenizer,
            TokenNeed(),
            report=reported,
            shard_tokens=SHARD,
            limits=limits,
        )

    return open_with


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize("content", [b"x\n", b"", DAMAGED], ids=["text", "empty", "cut"])
def test_a_damaged_index_is_set_aside_and_the_same_bytes_are_made(
    content: bytes, opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = opened()
    first.run()
    whole, path = prepared_files(tmp_path), first.directory / INDEX
    path.write_bytes(content)
    (first.directory / "train-00001.bin").unlink()
    again = opened()
    again.run()
    assert again.index == first.index
    assert prepared_files(tmp_path) == whole
    aside = path.with_name("index.json.damaged")
    assert aside.read_bytes() == content
    (line,) = errors(caplog)
    assert line.startswith(f"DAMAGED INDEX {path} moved to {aside}")


def test_the_buckets_index_takes_the_place_of_a_damaged_one(
    node: MakeNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = node("first")
    data = first.prepare()
    whole = first.files()
    (data.directory / INDEX).write_bytes(DAMAGED)
    monkeypatch.setattr(PinnedSource, "pieces", None)
    assert first.prepare().index == data.index
    assert (first.files(), first.made[1:]) == (whole, [0])
    (line,) = errors(caplog)
    assert line.startswith("DAMAGED INDEX")


@pytest.mark.parametrize("mended", [True, False], ids=["who mends it", "who ends"])
def test_an_index_is_left_to_the_process_that_writes(
    mended: bool, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    first = opened()
    first.run()
    path = first.directory / INDEX
    path.write_bytes(DAMAGED)
    aside = path.with_name("index.json.damaged")
    waited: list[bool] = []

    def report() -> None:
        if waited:
            return
        waited.append(True)
        assert path.read_bytes() == DAMAGED and not aside.exists()
        if mended:
            write_index(first.directory, first.index)
        else:
            other.close()

    with ExitStack() as other:
        other.enter_context(locked_folder(first.directory, lambda: None))
        second = opened(report, replace(SMALL_BATCHES, report_seconds=0.0))
        second.run()
    assert waited and second.index == first.index
    assert aside.exists() is not mended
    assert len(errors(caplog)) == (0 if mended else 1)


def test_an_index_of_a_newer_version_stays_an_error(opened: Open) -> None:
    first = opened()
    first.run()
    path = first.directory / INDEX
    path.write_text('{"format_version": 99}')
    with pytest.raises(IncompatibleRun, match="use the newer image"):
        opened().run()
    assert path.read_text() == '{"format_version": 99}'
    assert not path.with_name("index.json.damaged").exists()
