"""Rows: no replayed step twice, and the same numbers in every form."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import Unavailable
from app.observe.metrics import MetricsLog
from app.observe.rows import stored_rows
from app.run.layout import METRICS_KEY
from app.settings.variables import LogSettings
from app.stores.contract import Store
from app.stores.opening import open_store
from tests.support.rows import row, scalars


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store", "run")


def upload(log: MetricsLog, store: Store) -> None:
    for key, rows in log.objects().items():
        store.put(key, [rows.content()])


def test_replayed_steps_replace_the_lost_ones_in_every_form(folder: Store, tmp_path: Path) -> None:
    first = MetricsLog(tmp_path / "a", LogSettings().loggers, [])
    for step in range(1, 8):
        first.add(row(step))
    upload(first, folder)
    first.close()

    resumed = MetricsLog(
        tmp_path / "b", LogSettings().loggers, [row for row in stored_rows(folder) if row.step <= 4]
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
        log = MetricsLog(tmp_path, LogSettings().loggers, [])
        log.add(row(attempt))
        log.close()
    assert scalars(tmp_path) == [(2, 8.0)]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_rows_that_come_after_a_snapshot_are_not_in_it(folder: Store, tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, LogSettings().loggers, [], most_rows=10)
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
    evaluated: int, folder: Store, tmp_path: Path
) -> None:
    log = MetricsLog(tmp_path, LogSettings().loggers, [], most_rows=100)
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


def test_the_rows_of_an_older_image_are_thinned_when_they_are_taken_over(tmp_path: Path) -> None:
    earlier = [row(step) for step in range(1, 1001)]
    log = MetricsLog(tmp_path, LogSettings().loggers, earlier, most_rows=100)
    log.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 63


def test_loggers_none_writes_rows_only(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, "none", [])
    log.add(row(1))
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_full_disk_under_the_logs_is_said_and_does_not_get_in_the_way_of_closing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    log = MetricsLog(tmp_path, "csv", [])
    with pytest.raises(Unavailable, match="DATA_DIR"):
        log.add(row(1))
    log.close()
    assert "No space left on device" in caplog.text
