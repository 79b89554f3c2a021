"""Signs of life come where bytes move, as long as somebody waits; what is said of them is so."""

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from app.data.limits import DataLimits
from app.data.preparation import Preparation
from app.data.sources import pin_source
from app.data.token_need import PrepareProgress, TokenNeed
from app.data.token_progress import TokenProgress, describe
from app.data.tokenizer import read_tokenizer
from app.heartbeat import heartbeat_path, show_life_of
from app.settings.variables import DataSettings


@pytest.fixture(autouse=True)
def _own_heartbeat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    show_life_of("a run")


def beats(progress: TokenProgress) -> bool:
    heartbeat_path("a run").unlink(missing_ok=True)
    progress.alive()
    return heartbeat_path("a run").exists()


def test_bytes_are_a_sign_of_life_unless_the_training_goes_on_without_them() -> None:
    progress = TokenProgress()
    assert beats(progress), "before the first tokens"
    progress.waiting(PrepareProgress())
    assert beats(progress)
    progress.arrived()
    assert not beats(progress), "a training that hangs must not look alive"
    progress.waiting(PrepareProgress())
    assert beats(progress), "the training waits for tokens"


class LateWaiting(threading.Condition):
    """The wait of a moment in which all the tokens are made."""

    def __init__(self, make: Callable[[], None]) -> None:
        super().__init__()
        self.make = make

    def wait(self, timeout: float | None = None) -> bool:
        make, self.make = self.make, lambda: None
        make()
        return True


def test_who_waited_says_nothing_after_the_data_are_complete(
    tmp_path: Path, small_tokenizer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "a.txt").write_text("some words\n" * 500)
    data = DataSettings(dataset=f"{tmp_path}/a.txt", data_dir=tmp_path)
    tokenizer = read_tokenizer(small_tokenizer, "TOKENIZER=small")
    made = Preparation(pin_source(data), tokenizer, TokenNeed(stop=10**6))
    made._changed = LateWaiting(made.run)
    progress = TokenProgress()
    progress._last_line, progress._since = -math.inf, 0.0  # a line is due
    index = made.wait_for("train", 100, progress.waiting)
    assert caplog.messages == [f"data complete: {index.n_tokens('train'):,} tokens"]
    progress.waiting(made.progress)
    progress.arrived()
    progress.behind(made.progress)
    assert caplog.messages[1:] == []


def test_what_is_said_of_the_rest_is_an_upper_limit() -> None:
    some = PrepareProgress(documents=1, tokens=400, tokens_total=1000, tokens_made=400, seconds=4)
    assert describe(some) == (
        "1 document, 400 tokens, 1,000 are enough | 100 tokens/s | at most 0:06 at this speed"
    )
    assert describe(replace(some, tokens_total=None)) == "1 document, 400 tokens | 100 tokens/s"
    assert describe(replace(some, tokens=1000)) == "1 document, 1,000 tokens | 100 tokens/s"
    assert describe(replace(some, shards_total=3)) == "0 of 3 shards fetched"
    assert describe(PrepareProgress(tokens_total=1000)) == "reading the first documents"


def test_a_bar_draws_no_share_of_what_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.data.token_progress.on_terminal", lambda: True)
    progress = TokenProgress()
    progress.waiting(PrepareProgress(tokens=400, tokens_total=1000))
    bar = progress._bar
    assert bar is not None and bar.total is None and bar.postfix == "1,000 are enough"
    progress.waiting(PrepareProgress(tokens=1000, tokens_total=1000, shards_total=3))
    assert (bar.n, bar.postfix) == (1000, "shards fetched 0/3")
    progress.arrived()


def test_a_bar_says_how_long_it_takes_at_most_within_80_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.data.token_progress.on_terminal", lambda: True)
    progress = TokenProgress()
    some = PrepareProgress(tokens=1, tokens_total=2 * 10**9, tokens_made=150_000_000, seconds=700)
    progress.waiting(replace(some, tokens_made=0))
    progress.waiting(replace(some, tokens=150_000_001))
    bar = progress._bar
    assert bar is not None and bar.postfix == "at most 2:23:53 at this speed"
    shown = bar.format_meter(**{**bar.format_dict, "elapsed": 700.0, "rate": 214_286.0})
    assert len(shown) <= 80, shown
    progress.arrived()


def test_hashing_a_large_file_gives_signs_of_life_on_the_way(tmp_path: Path) -> None:
    limits = DataLimits(digested_bytes=100)
    seen: list[None] = []
    for name, size in (("small.txt", 1000), ("large.txt", 64 * 2**20 + 1)):
        (tmp_path / name).write_bytes(b"x" * size)
        data = DataSettings(dataset=f"{tmp_path}/{name}")
        pin_source(data, None, lambda: seen.append(None), limits=limits)
    assert len(seen) == 10 + 256
