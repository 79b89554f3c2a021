"""Rows: no replayed step twice, and the same numbers in every form."""

import csv
import json
import socket
import urllib.request
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from app.errors import ConfigError, Unavailable
from app.observe.metrics import MetricsLog, Row, perplexity, step_line, stored_rows
from app.run.layout import METRICS_KEY
from app.settings.variables import LogSettings
from app.stores.contract import Store
from app.stores.opening import open_store


def row(step: int, loss: float | None = None) -> Row:
    return Row(
        step=step,
        tokens=step * 100,
        loss=10.0 - step if loss is None else loss,
        learning_rate=1e-4,
        grad_norm=1.0,
        tokens_per_second=5.0,
        mfu=None,
        validation_loss=None,
        attempt=1,
        time=1_700_000_000.0 + step,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store", "run")


def upload(log: MetricsLog, store: Store) -> None:
    for key, rows in log.objects().items():
        store.put(key, [rows.content()])


def scalars(directory: Path, name: str = "loss") -> list[tuple[int, float]]:
    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def served(port: int) -> dict[str, float]:
    """Every gauge with its value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = [line.split('{run="run"} ') for line in lines if not line.startswith("#")]
    return {name: float(value) for name, value in found}


def test_replayed_steps_replace_the_lost_ones_in_every_form(folder: Store, tmp_path: Path) -> None:
    first = MetricsLog(tmp_path / "a", LogSettings(), "run", [])
    for step in range(1, 8):
        first.add(row(step))
    upload(first, folder)
    first.close()

    resumed = MetricsLog(
        tmp_path / "b", LogSettings(), "run", [row for row in stored_rows(folder) if row.step <= 4]
    )
    for step in range(5, 9):
        resumed.add(row(step, loss=100.0 + step))
    upload(resumed, folder)
    resumed.close()

    expected = [(s, 10.0 - s) for s in range(1, 5)] + [(s, 100.0 + s) for s in range(5, 9)]
    assert [(r.step, r.loss) for r in stored_rows(folder)] == expected
    with (tmp_path / "b" / "metrics.csv").open() as file:
        assert [(int(r["step"]), float(r["loss"])) for r in csv.DictReader(file)] == expected
    assert scalars(tmp_path / "b") == expected


def test_the_local_folder_of_a_dead_attempt_is_taken_over(tmp_path: Path) -> None:
    for attempt in (1, 2):
        log = MetricsLog(tmp_path, LogSettings(), "run", [])
        log.add(row(attempt))
        log.close()
    assert scalars(tmp_path) == [(2, 8.0)]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_rows_that_come_after_a_snapshot_are_not_in_it(
    folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.observe.metrics.MOST_ROWS", 10)
    log = MetricsLog(tmp_path, LogSettings(), "run", [])
    for step in range(1, 6):
        log.add(row(step))
    objects = log.objects()
    for step in range(6, 30):  # the files begin again in between
        log.add(row(step))
    log.close()
    for key, rows in objects.items():
        folder.put(key, [rows.content()])
    assert [r.step for r in stored_rows(folder)] == [1, 2, 3, 4, 5]
    logs = tmp_path / "store/run/logs"
    assert [step for step, _ in scalars(logs)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("evaluated", [10, 1])
def test_beyond_a_number_of_rows_the_curve_gets_thinner_and_not_longer(
    evaluated: int, folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.observe.metrics.MOST_ROWS", 100)
    log = MetricsLog(tmp_path, LogSettings(), "run", [])
    for step in range(1, 1001):
        log.add(replace(row(step), validation_loss=None if step % evaluated else 2.0))
        if step in (101, 1000):
            upload(log, folder)
            kept = [r.step for r in stored_rows(folder)]
            assert 50 <= len(kept) <= 100
            assert kept == sorted(set(kept))
            assert kept[-1] == step
            assert kept[0] < 50, "the whole curve is there"
            if evaluated == 10:
                evaluations = [s for s in kept if s % 10 == 0]
                assert len(evaluations) / step * 10 > len(kept) / step, "these are kept longest"
    log.close()
    assert [s for s, _ in scalars(tmp_path)] == kept
    with (tmp_path / "metrics.csv").open() as file:
        assert [int(r["step"]) for r in csv.DictReader(file)] == kept
    local = (tmp_path / "metrics.jsonl").read_bytes()
    assert local == folder.get(METRICS_KEY)[0]


def test_the_rows_of_an_older_image_are_thinned_when_they_are_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.observe.metrics.MOST_ROWS", 100)
    log = MetricsLog(tmp_path, LogSettings(), "run", [row(step) for step in range(1, 1001)])
    log.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 63


def test_a_run_without_rows_starts_empty(folder: Store) -> None:
    assert stored_rows(folder) == []


def test_an_unreadable_line_costs_only_itself(
    folder: Store, caplog: pytest.LogCaptureFixture
) -> None:
    log = MetricsLog(Path(folder.uri.removeprefix("file://")), LogSettings(), "run", [])
    log.add(row(1))
    content = log.objects()[METRICS_KEY].content()
    log.close()
    folder.put(METRICS_KEY, [content, b'{"step": 2, "lo', b"\n", b"[]\n"])
    assert [r.step for r in stored_rows(folder)] == [1]
    assert "2 unreadable lines" in caplog.text


def test_loggers_none_writes_rows_only(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, LogSettings(loggers="none"), "run", [])
    log.add(row(1))
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_prometheus_serves_the_newest_row_and_a_taken_port_is_named(tmp_path: Path) -> None:
    port = free_port()
    log = MetricsLog(tmp_path, LogSettings(loggers="none", metrics_port=port), "run", [])
    log.add(row(1))
    log.add(row(2))
    assert served(port)["train_loss"] == 8.0
    with pytest.raises(ConfigError, match=f"METRICS_PORT={port}"):
        MetricsLog(tmp_path, LogSettings(loggers="none", metrics_port=port), "run", [])
    log.close()


def test_how_saving_goes_is_in_every_form(tmp_path: Path) -> None:
    port = free_port()
    log = MetricsLog(tmp_path, LogSettings(metrics_port=port), "run", [])
    log.add(row(1))
    assert "train_checkpoint_age_seconds" not in served(port), "no checkpoint, no age"
    log.add(replace(row(2), checkpoint_age_seconds=61.5, saves_committed=3, failed_saves=4))
    gauges = served(port)
    log.close()
    names = ("checkpoint_age_seconds", "saves_committed", "failed_saves")
    assert [gauges[f"train_{name}"] for name in names] == [61.5, 3, 4]
    assert [scalars(tmp_path, name) for name in names] == [[(2, 61.5)], [(2, 3)], [(2, 4)]]
    with (tmp_path / "metrics.csv").open() as file:
        before, after = csv.DictReader(file)
    assert [before[name] for name in names] == ["", "", ""]
    assert [float(after[name]) for name in names] == [61.5, 3, 4]
    written = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])
    assert [written[name] for name in names] == [61.5, 3, 4]


def test_rows_of_a_version_that_knew_less_are_read(folder: Store) -> None:
    known = asdict(row(1))
    for name in ("checkpoint_age_seconds", "saves_committed", "failed_saves"):
        del known[name]
    folder.put(METRICS_KEY, [json.dumps(known).encode() + b"\n"])
    assert stored_rows(folder) == [row(1)]


def test_a_full_disk_under_the_logs_is_said_and_does_not_get_in_the_way_of_closing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    log = MetricsLog(tmp_path, LogSettings(loggers="csv"), "run", [])
    with pytest.raises(Unavailable, match="DATA_DIR"):
        log.add(row(1))
    log.close()
    assert "No space left on device" in caplog.text


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


def test_perplexity_is_e_to_the_loss() -> None:
    assert perplexity(None) is None
    assert perplexity(2.0) == pytest.approx(7.389056)
    assert perplexity(1e9) == pytest.approx(1.0142e304, rel=1e-4)
