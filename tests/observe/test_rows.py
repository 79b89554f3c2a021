"""Rows as they are read, and as a line of the log."""

import json
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

import pytest
from tqdm import tqdm

from app.console import duration
from app.observe.metrics import MetricsLog
from app.observe.rows import Row, bar_format, perplexity, step_line, stored_rows
from app.run.layout import METRICS_KEY
from app.settings.variables import LogSettings
from app.stores.contract import Store
from app.stores.opening import open_store
from tests.support.rows import row


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store", "run")


def test_a_run_without_rows_starts_empty(folder: Store) -> None:
    assert stored_rows(folder) == []


def test_an_unreadable_line_costs_only_itself(
    folder: Store, caplog: pytest.LogCaptureFixture
) -> None:
    log = MetricsLog(Path(folder.uri.removeprefix("file://")), LogSettings().loggers, [])
    log.add(row(1))
    content = log.objects()[METRICS_KEY].content()
    log.close()
    folder.put(METRICS_KEY, [content, b'{"step": 2, "lo', b"\n", b"[]\n"])
    assert [r.step for r in stored_rows(folder)] == [1]
    assert "2 unreadable lines" in caplog.text


def test_rows_of_a_version_that_knew_less_are_read(folder: Store) -> None:
    known = asdict(row(1))
    for name in ("checkpoint_age_seconds", "saves_committed", "failed_saves"):
        del known[name]
    folder.put(METRICS_KEY, [json.dumps(known).encode() + b"\n"])
    assert stored_rows(folder) == [row(1)]


def test_a_line_says_all_that_is_known_of_a_step() -> None:
    row = Row(
        step=20,
        tokens=1,
        loss=10.81234,
        learning_rate=6e-5,
        grad_norm=1.5,
        tokens_per_second=12_345.6,
        mfu=0.4123,
        mfu_full=0.4985,
        validation_loss=2.0,
        attempt=1,
        time=0.0,
    )
    saved = replace(row, checkpoint_age_seconds=3.2, saves_committed=1, failed_saves=0)
    assert step_line(saved, 60, 1.5) == (
        "step 20/60 | loss 10.8123 | lr 6.00e-05 | grad 1.50 | 12,346 tok/s | "
        "MFU 41.2% causal, 49.9% full | val loss 2.0000 (ppl 7.4) | ETA 1:00 | saved 0:03 ago"
    )
    assert step_line(row, 60, 1.5).endswith("not saved yet")
    failing = step_line(replace(saved, failed_saves=4), 60, 1.5)
    assert failing.endswith("saved 0:03 ago | 4 failed saves since")
    once = step_line(replace(saved, failed_saves=1), 60, 1.5)
    assert once.endswith("saved 0:03 ago | 1 failed save since")


def test_perplexity_is_e_to_the_loss() -> None:
    assert perplexity(None) is None
    assert perplexity(2.0) == pytest.approx(7.389056)
    assert perplexity(1e9) == pytest.approx(1.0142e304, rel=1e-4)


@pytest.mark.parametrize("step", [0, 120, 99_999_999])
@pytest.mark.parametrize("age", [None, 12.0, 7_200.0])
@pytest.mark.parametrize("columns", [20, 40, 60, 80, 120, 200])
def test_the_bar_fits_the_terminal_and_tells_of_the_newest_checkpoint_first(
    columns: int, age: float | None, step: int
) -> None:
    form = bar_format(row(step, loss=3.123), step, step + 5_000, 33.0, age, columns)
    bar = tqdm(
        total=step + 5_000, initial=step, bar_format=form, ncols=columns - 1, file=StringIO()
    )
    shown = str(bar)
    bar.close()
    assert len(shown) < columns or columns == 20
    if columns >= 40:
        assert ("not saved yet" if age is None else f"saved {duration(age)} ago") in shown
    if columns >= 60 and step < 1_000:
        assert "loss 3.123" in shown
    if columns >= 80 and step < 1_000:
        assert "ETA" in shown and "%|" in shown
