"""What the data commands print is what training sees."""

import contextlib
import dataclasses
import errno
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from app.cli import parser as cli
from app.cli.prepared_tokens import batch_and_length, find_tokens
from app.data import inspection
from app.data.inspection import Place, PreparedTokens, Sample, samples_of_step, statistics
from app.data.limits import DataLimits
from app.data.loader import training_loader
from app.data.preparation import Preparation
from app.data.sample_order import WINDOW_SEQUENCES, BatchGeometry, corpus_order
from app.data.shards import Tokens
from app.data.tokenizer import read_tokenizer
from app.errors import ConfigError
from app.settings.combined import Settings
from app.settings.load import load_settings
from app.settings.variables import DataSettings, variables
from tests.support.job import ROOT
from tests.support.prepared import prepare
from tests.support.unreadable import make_unreadable

SEQ_LEN = 32
TEXTS = [f"<{i}> " + "more words, and more " * (i % 9) for i in range(400)]
Data = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture(scope="module")
def flags(
    corpus: Path, small_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Of a run whose tokens are prepared whole."""
    flags = {
        "dataset": str(corpus),
        "tokenizer": str(small_tokenizer),
        "data_dir": str(tmp_path_factory.mktemp("data")),
        "model": "tiny",
        "seq_len": str(SEQ_LEN),
        "batch_size": "2",
        "global_batch_size": "8",
    }
    prepared(flags)
    return flags


def prepared(flags: dict[str, str], needed: int | None = None) -> Preparation:
    data = DataSettings(dataset=flags["dataset"], data_dir=Path(flags["data_dir"]))
    tokenizer = read_tokenizer(Path(flags["tokenizer"]), "TOKENIZER")
    limits = DataLimits(batch_characters=3000)
    return prepare(data, tokenizer, needed, shard_tokens=2000, limits=limits)


@pytest.fixture
def data(
    flags: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Data:
    """`python -m app data …` in this process: exit code, output, log."""
    for variable in variables():
        monkeypatch.delenv(variable.name, raising=False)

    def run(*arguments: str, **changes: str) -> tuple[int, str, str]:
        given = {**flags, **changes}
        words = [word for name, value in given.items() for word in (f"--{name}", value)]
        code = cli.main(["data", *arguments, *words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.mark.parametrize("world_size", [1, 2])
def test_show_prints_what_the_loader_shows(
    world_size: int, data: Data, flags: dict[str, str]
) -> None:
    whole = prepared(flags)
    order = corpus_order(whole.train.n_tokens, SEQ_LEN, complete=True, seed=1337)
    assert order.n_sequences is not None
    step = order.n_sequences // 8 + 1  # an epoch begins inside it
    codec = Tokenizer.from_file(flags["tokenizer"] + "/tokenizer.json")
    for rank in range(world_size):
        geometry = BatchGeometry(2, 8, SEQ_LEN, world_size, rank)
        batches = training_loader(
            whole.train, order.sequences, geometry, step - 1, step, num_workers=0, pin_memory=False
        )
        rows = [row[:-1].tolist() for batch in batches for row in batch]
        where = ("--step", str(step), "--rank", str(rank), "--world_size", str(world_size))
        code, out, _ = data("show", *where, "--json")
        assert code == 0
        samples = json.loads(out)["samples"]
        assert [sum(d["tokens"] for d in s["documents"]) for s in samples] == [SEQ_LEN] * len(rows)
        for row, sample in zip(rows, samples, strict=True):
            assert codec.decode(row) == "".join(d["text"] for d in sample["documents"])
            assert row.count(0) == sum(d["ends"] for d in sample["documents"])
            assert sample["epoch"] == sample["sample"] // order.n_sequences + 1
        _, out, _ = data("show", *where)
        assert out.count("━━ step") == len(rows)
        assert out.count("── end of document ──") == sum(row.count(0) for row in rows)
        one = data("show", *where, "--micro_step", "1", "--json")[1]
        assert json.loads(one)["samples"] == samples[2:4]


def test_a_step_that_is_not_prepared_says_so_and_what_to_do(
    data: Data, flags: dict[str, str], tmp_path: Path
) -> None:
    some = {**flags, "data_dir": str(tmp_path)}
    code, _, log = data("show", "--step", "1", data_dir=str(tmp_path))
    assert code == 78
    assert f"DATA_DIR={tmp_path} holds no tokens" in log and "python -m app prepare" in log
    prepared(some, needed=100)
    code, out, log = data("show", "--step", "900", data_dir=str(tmp_path))
    assert (code, out) == (78, "")
    assert "step 900 is not prepared yet" in log and "prepare --total_steps 900" in log


def test_what_is_shown_of_an_unfinished_corpus_is_what_the_whole_one_shows(
    flags: dict[str, str], tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": f"<{i}> " * 40}) + "\n" for i in range(450)))
    some = {**flags, "dataset": str(corpus), "data_dir": str(tmp_path), "global_batch_size": "2"}
    settings = load_settings(some)
    window, window_steps = WINDOW_SEQUENCES * SEQ_LEN + 1, WINDOW_SEQUENCES // 2

    def shown() -> dict[int, list[Sample]]:
        tokens, found = find_tokens(settings), {}
        for step in range(1, int(1.5 * window_steps), 16):
            with contextlib.suppress(ConfigError):
                place = Place(step, rank=0, world_size=1, micro_step=None)
                found[step] = of_step(settings, tokens, place)
        return found

    assert not prepared(some, needed=100).index.complete
    assert shown() == {}
    within_the_last_window = prepared(some, needed=window + window // 2)
    assert not within_the_last_window.index.complete
    before = shown()
    assert list(before) == list(range(1, window_steps + 1, 16))
    assert 1.5 * window < prepared(some).train.n_tokens < 2 * window, "it ends within a window"
    after = shown()
    assert len(after) > len(before)
    assert {step: after[step] for step in before} == before


def test_a_dataset_of_less_than_a_sequence_is_said_to_be_too_small(
    data: Data, flags: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("few")
    here = {"dataset": str(path), "data_dir": str(tmp_path)}
    prepared({**flags, **here})
    code, _, log = data("show", "--step", "1", **here)
    assert code == 78
    assert "tokens to train on, and one sequence takes SEQ_LEN + 1 = 33" in log


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["show"], "--step"),
        (["show", "--step", "0"], "0 is below 1"),
        (["show", "--step", "1", "--rank", "1"], "--rank 1 is not below --world_size 1"),
        (["show", "--step", "1", "--world_size", "3"], "is not a multiple"),
        (["show", "--step", "1", "--micro_step", "4"], "--micro_step 4: a step has 4"),
    ],
)
def test_a_place_that_the_run_does_not_have_is_a_bad_command_line(
    arguments: list[str], text: str, data: Data
) -> None:
    code, out, log = data(*arguments)
    assert (code, out) == (64, "")
    assert text in log


def test_text_cannot_move_the_cursor_of_a_terminal(
    small_tokenizer: Path, tmp_path: Path, data: Data
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("red \x1b[31m and\tthen\n" * 20)
    prepared({"dataset": str(path), "tokenizer": str(small_tokenizer), "data_dir": str(tmp_path)})
    code, out, _ = data("show", "--step", "1", dataset=str(path), data_dir=str(tmp_path))
    assert code == 0
    assert "\x1b" not in out and "␛[31m and\tthen\n" in out


def by_hand(ids: Tokens) -> list[int]:
    lengths, length = [], 0
    for token in ids.tolist():
        length += 1
        if token == 0:
            lengths.append(length)
            length = 0
    return lengths


@pytest.mark.parametrize("chunk", [37, 1 << 22])
def test_statistics_are_those_of_a_count_by_hand(chunk: int, flags: dict[str, str]) -> None:
    whole = prepared(flags)
    found = statistics(find_tokens(load_settings(flags)), chunk)
    train = whole.train.read(0, whole.train.n_tokens)
    validation = whole.validation.read(0, whole.validation.n_tokens)
    for split, ids in (("train", train), ("validation", validation)):
        lengths = by_hand(ids)
        counted = found.splits[split]  # type: ignore[index]
        assert (counted.tokens, counted.documents) == (len(ids), len(lengths))
        assert counted.longest == max(lengths)
        assert sum(n for _, _, n in counted.lengths) == len(lengths)
        for low, high, number in counted.lengths:
            assert number == sum(low <= length <= high for length in lengths)
    ids = np.concatenate([train, validation])
    assert found.source_documents == len(TEXTS) and found.complete
    assert found.tokens_used == len(set(ids.tolist()))
    assert found.text_bytes == sum(len(text.encode()) for text in TEXTS)
    assert found.bytes_per_token == found.text_bytes / np.count_nonzero(ids)
    assert found.share_of_top_1000 == 1.0


def test_stats_print_a_table_or_json(data: Data) -> None:
    code, out, _ = data("stats")
    assert code == 0
    for word in ("400 read (the whole source)", "bytes per token", "tokens per document", "█"):
        assert word in out
    assert [line for line in out.splitlines() if line.endswith(" ")] == []
    code, out, _ = data("stats", "--json")
    assert json.loads(out)["splits"]["train"]["documents"] > 300


@pytest.mark.parametrize("command", [("stats",), ("show", "--step", "1")], ids=str)
def test_tokens_that_may_not_be_read_are_no_access_and_named(
    command: tuple[str, ...], data: Data, flags: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = prepared(flags).directory
    for path in directory.glob("train-*.bin"):
        make_unreadable(monkeypatch, path, errno.EACCES)
    code, _, log = data(*command)
    assert code == 77
    assert re.search(rf"{directory}/train-\d+.bin cannot be read .Permission denied", log)
    assert "Traceback" not in log


def test_the_length_of_a_sequence_is_the_jobs(flags: dict[str, str]) -> None:
    assert batch_and_length(load_settings(flags))[1] == SEQ_LEN
    named = {name: value for name, value in flags.items() if name != "seq_len"}
    assert batch_and_length(load_settings(named))[1] == 256
    unnamed = {name: value for name, value in named.items() if name != "model"}
    assert batch_and_length(load_settings({**unnamed, "device": "cpu"}))[1] == 256


def test_looking_at_data_takes_no_torch(flags: dict[str, str]) -> None:
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    code = (
        "import sys; from app.cli.parser import main; "
        f"code = main(['data', 'show', '--step', '1', *{words!r}]); "
        "print(sorted({'torch', 'transformers', 'datasets'} & sys.modules.keys())); sys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"


def of_step(settings: Settings, tokens: PreparedTokens, place: Place) -> list[Sample]:
    _, seq_len = batch_and_length(settings)
    return samples_of_step(tokens, settings.batch, seq_len, settings.run.seed, place)


def test_samples_are_plain_data(flags: dict[str, str]) -> None:
    settings = load_settings(flags)
    place = inspection.Place(step=1, rank=0, world_size=1, micro_step=None)
    (first, *_) = of_step(settings, find_tokens(settings), place)
    assert dataclasses.asdict(first)["sample"] == 0
