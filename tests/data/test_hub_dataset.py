"""Datasets of the hub: streaming, going on, tokens, outages. A hub on loopback stands in."""

import errno
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.cli import parser as cli
from app.data.limits import DataLimits
from app.data.pieces import Position
from app.data.retries import PAUSES
from app.data.shard_index import ShardIndex
from app.data.sources import PinnedSource, pin_source
from app.data.tokenizer import read_tokenizer
from app.errors import AccessDenied, AppError, ConfigError, Damaged, NotFound, Unavailable
from app.settings.dataset_spec import HubName
from app.settings.variables import DataSettings
from tests.support.hubserver import REVISION, TOKEN, hub, use_endpoint
from tests.support.prepared import prepare
from tests.support.source_pieces import (
    check_every_position,
    documents,
    fingerprint_of,
    source,
    texts,
)

SMALL_BATCHES = DataLimits(batch_characters=20)
HUB_FILES = {"train.jsonl": b"".join(b'{"text": "row %d", "n": 1}\n' % i for i in range(30))}
SHARDS = {
    f"train-{shard}.jsonl": b"".join(b'{"text": "row %d %d"}\n' % (shard, i) for i in range(10))
    for shard in range(3)
}
SHARD_ROWS = [f"row {shard} {i}" for shard in range(3) for i in range(10)]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For the pauses that a test notes; those of the hub's client and of jobs take no time."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return []


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The positions after which pieces were asked for."""
    positions, pieces = [], PinnedSource.pieces

    def noted(self: PinnedSource, after: Position | None = None) -> Any:
        positions.append(after)
        return pieces(self, after)

    monkeypatch.setattr(PinnedSource, "pieces", noted)
    return positions


def test_a_dataset_of_the_hub_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub(monkeypatch, tmp_path, HUB_FILES):
        assert texts("o/good") == [f"row {i}" for i in range(30)]
        assert fingerprint_of(source("o/good")) == fingerprint_of(source(f"o/good@{REVISION}"))


def test_a_dataset_of_the_hub_is_gone_on_with_at_any_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"train-{n}.jsonl": b'{"text": "row"}\n{"text": "long row"}\n' for n in range(2)}
    with hub(monkeypatch, tmp_path, files):
        pieces = check_every_position(source("o/good"), DataLimits(long_row=6, piece_size=3))
    assert [piece.text for piece in pieces] == ["row", "long r", "ow"] * 2


def test_a_run_goes_on_with_the_revision_that_it_was_begun_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DataSettings(dataset="o/good", data_dir=tmp_path)
    with hub(monkeypatch, tmp_path, HUB_FILES) as requests:
        begun = pin_source(settings)
        assert (begun.revision, begun.settings.dataset) == (REVISION, f"o/good@{REVISION}")
        asked = len(requests)
        assert pin_source(settings, REVISION) == begun
        assert pin_source(settings, "b" * 40).fingerprint != begun.fingerprint
        assert len(requests) == asked, "a known revision needs no hub"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"text_column": "body"}, "^TEXT_COLUMN=body is not in o/good; it has n, text$"),
        ({"dataset_split": "dev"}, r"DATASET_SPLIT=dev cannot be used: .*\['train'\]"),
        ({"dataset_config": "en"}, "DATASET_CONFIG=en .*cannot be used: .*'en' not found"),
    ],
    ids=str,
)
def test_a_wrong_part_of_a_hub_dataset_is_named(
    more: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub(monkeypatch, tmp_path, HUB_FILES), pytest.raises(ConfigError, match=message):
        texts("o/good", **more)


def test_a_broken_file_of_the_hub_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"train.jsonl": b'{"text": "a"}\n{"text": '}
    with hub(monkeypatch, tmp_path, files), pytest.raises(Damaged, match=r"^DATASET=o/good"):
        texts("o/good")


class Unreadable:
    """A dataset of the library that raises where a row is read."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __iter__(self) -> Iterator[Any]:
        raise self._error


@pytest.mark.parametrize(
    ("raised", "opening", "reading"),
    [
        (KeyError("train"), ConfigError, Damaged),
        (NotImplementedError("Extraction protocol for zstd"), ConfigError, Damaged),
        (ImportError("To decode it, install another package"), ConfigError, Damaged),
        (OSError(errno.ENOSPC, "No space left on device"), Unavailable, Unavailable),
    ],
    ids=repr,
)
def test_whatever_the_library_raises_is_said_in_one_line(
    raised: Exception,
    opening: type[AppError],
    reading: type[AppError],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise raised

    with hub(monkeypatch, tmp_path, HUB_FILES):
        for load, expected in ((fails, opening), (lambda *_, **__: Unreadable(raised), reading)):
            monkeypatch.setattr("datasets.load_dataset", load)
            with pytest.raises(expected, match=r"o/good|HF_HOME") as caught:
                next(documents(source("o/good"), sleep=lambda seconds: None))
            assert caught.type is expected and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("o/missing", AccessDenied),  # or private: the hub does not say
        ("o/gated", AccessDenied),
        ("o/forbidden", AccessDenied),
        ("o/busy", Unavailable),
        ("no id at all", NotFound),
    ],
)
def test_the_hubs_refusals_are_told_apart(
    dataset: str, expected: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub(monkeypatch, tmp_path, HUB_FILES):
        with pytest.raises(expected, match=f"^DATASET={dataset}") as caught:
            fingerprint_of(source(dataset))
        assert caught.type is expected
        with pytest.raises(expected, match=f"^DATASET={dataset}"):
            texts(dataset)


def test_a_hub_that_nobody_answers_for_is_unavailable(
    closed_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_endpoint(monkeypatch, closed_endpoint, tmp_path)
    with pytest.raises(Unavailable, match=r"^DATASET=o/good: the hub cannot be reached"):
        fingerprint_of(source("o/good"))


def test_each_part_of_a_name_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "en/train.jsonl": b'{"text": "en train"}\n',
        "en/test.jsonl": b'{"text": "en test"}\n',
        "de/train.jsonl": b'{"text": "de train"}\n',
        "README.md": b"---\nconfigs:\n- config_name: en\n  data_files:\n"
        b"  - split: train\n    path: en/train.jsonl\n  - split: test\n    path: en/test.jsonl\n"
        b"- config_name: de\n  data_files: de/train.jsonl\n---\n",
    }
    with hub(monkeypatch, tmp_path, files):
        assert texts("o/good", dataset_config="de") == ["de train"]
        assert texts("o/good#de", dataset_config="en") == ["de train"]
        assert texts("o/good#en/test") == ["en test"]
        assert texts(f"o/good@{REVISION}#en", dataset_split="test") == ["en test"]
        pinned = pin_source(source("o/good#en/test"))
        assert pinned.settings.dataset == f"o/good@{REVISION}#en/test"


@pytest.mark.parametrize("text", ["o/n", "n", "o/n@main", "o/n@main#c", "o/n#c/s", "o/n#/s"])
def test_a_name_is_written_as_it_is_read(text: str) -> None:
    assert str(HubName.parse(text)) == text


@pytest.mark.parametrize("token", [None, "hf_wrongwrongwrong"])
def test_a_private_dataset_is_denied_without_the_right_token(
    token: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with (
        hub(monkeypatch, tmp_path, HUB_FILES),
        pytest.raises(AccessDenied, match=r"^DATASET=o/private: .*set HF_TOKEN") as caught,
    ):
        documents(source("o/private"))
    assert caught.value.exit_code == 77
    assert "wrongwrong" not in str(caught.value)


def test_a_private_dataset_is_read_with_hf_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with hub(monkeypatch, tmp_path, HUB_FILES):
        assert len(texts("o/private")) == 30
        with pytest.raises(NotFound, match=r"^DATASET=o/missing: neither a path here nor"):
            documents(source("o/missing"))


def test_a_hub_that_is_down_in_the_middle_is_waited_for_and_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    waits: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with hub(monkeypatch, tmp_path, SHARDS) as requests:
        requests.failing = lambda path: "train-1" in path and "/resolve/" in path

        def back_after_three(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 3:
                requests.failing = lambda path: False

        pieces = documents(source("o/good"), sleep=back_after_three)
        read = [next(pieces).text for _ in range(9)]
        assert read + [piece.text for piece in pieces] == SHARD_ROWS
    assert waits == [1.0, 2.0, 4.0]
    lines = [r.getMessage() for r in caplog.records if r.name == "app.data.retries"]
    assert len(lines) == 3
    assert "DATASET=o/good" in lines[0] and "trying again in 1 s (1 of 8)" in lines[0]


@pytest.mark.usefixtures("waits")
def test_a_hub_that_stays_away_is_unavailable_and_the_next_start_goes_on_where_it_was(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_tokenizer: Path,
    waits: list[float],
    asked: list[Any],
) -> None:
    tokenizer = read_tokenizer(small_tokenizer, "")

    def index(folder: str) -> ShardIndex:
        data = DataSettings(dataset="o/good", data_dir=tmp_path / folder)
        return prepare(
            data, tokenizer, shard_tokens=30, limits=SMALL_BATCHES, sleep=waits.append
        ).index

    with hub(monkeypatch, tmp_path, SHARDS) as requests:
        requests.failing = lambda path: "train-2" in path and "/resolve/" in path
        with pytest.raises(Unavailable, match=r"^DATASET=o/good.*hub answers 502") as caught:
            index("killed")
        assert caught.value.exit_code == 75
        assert waits == list(PAUSES)
        sealed = json.loads(next(tmp_path.glob("killed/tokens/*/index.json")).read_text())
        assert 10 < sealed["seals"][-1]["pieces"] < 20
        requests.failing = lambda path: False
        made = index("killed")
        assert asked[-1]["rows"] == 20
        assert made == index("straight")


def test_a_shard_of_the_hub_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_tokenizer: Path
) -> None:
    tokenizer = read_tokenizer(small_tokenizer, "")
    data = DataSettings(dataset="o/good", data_dir=tmp_path)
    with hub(monkeypatch, tmp_path, SHARDS):
        prepare(data, tokenizer, shard_tokens=30, limits=SMALL_BATCHES)
        for shard in tmp_path.rglob("train-0000?.bin"):
            content = shard.read_bytes()
            shard.unlink()
            prepare(data, tokenizer, shard_tokens=30, limits=SMALL_BATCHES)
            assert shard.read_bytes() == content


@pytest.mark.usefixtures("waits", "own_handlers")
def test_a_job_whose_hub_goes_down_before_the_first_shard_keeps_what_it_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_tokenizer: Path, asked: list[Any]
) -> None:
    for name, value in {
        "DATASET": "o/good",
        "TOKENIZER": str(small_tokenizer),
        "MODEL": "tiny",
        "DEVICE": "cpu",
        "CHECKPOINT_URI": f"file://{tmp_path}/store",
    }.items():
        monkeypatch.setenv(name, value)

    def asks_for(file: str, path: str) -> bool:
        return file in path and "/resolve/" in path

    def job(folder: str) -> int:
        monkeypatch.setenv("DATA_DIR", str(tmp_path / folder))
        return cli.main(["prepare", "--all"])

    def shards(folder: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in tmp_path.glob(f"{folder}/tokens/*/*.bin")}

    with hub(monkeypatch, tmp_path, SHARDS) as requests:
        for n_files in (1, 2):
            requests.failing = partial(asks_for, f"train-{n_files}")
            assert job("killed") == 75
            assert not shards("killed")
        requests.failing = lambda path: False
        assert job("killed") == 0
        assert [position and position["rows"] for position in asked] == [None, 10, 20]
        assert job("straight") == 0
    assert shards("killed") == shards("straight") != {}


def test_going_on_does_not_read_what_lies_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = b'{"text": "one"}\n{"text": "two"}\n'
    files = {**SHARDS, "train-3.jsonl": more, "train-4.jsonl": more}
    with hub(monkeypatch, tmp_path, files) as requests:
        pieces = documents(source("o/good"))
        for _ in range(33):
            next(pieces)
        requests.clear()
        rest = documents(source("o/good"), pieces.position)
        assert [piece.text for piece in rest] == ["two"]
        # The library looks at the first file for the columns, and for its place at the two
        # files before it.
        assert not [path for path in requests if path.endswith("train-1.jsonl")]


def test_a_position_of_another_version_of_the_library_is_counted_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub(monkeypatch, tmp_path, SHARDS):
        position: dict[str, Any] = {"rows": 13, "library": "1.0", "state": {"strange": 1}}
        rest = documents(source("o/good"), position)
        assert [piece.text for piece in rest] == SHARD_ROWS[13:]
