"""What trackers show: all the numbers of a row, and the newest row to Prometheus."""

import csv
import json
import socket
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import ConfigError
from app.observe.metrics import MetricsLog
from app.observe.trackers import PrometheusTracker
from app.settings.variables import LogSettings
from tests.support.rows import row, scalars


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


def test_prometheus_serves_the_newest_row_and_a_taken_port_is_named(tmp_path: Path) -> None:
    port = free_port()
    log = MetricsLog(tmp_path, "none", [], PrometheusTracker(port, "run"))
    log.add(row(1))
    log.add(row(2))
    assert served(port)["train_loss"] == 8.0
    with pytest.raises(ConfigError, match=f"METRICS_PORT={port}"):
        PrometheusTracker(port, "run")
    log.close()


def test_prometheus_serves_what_each_rank_needs_for_a_step(tmp_path: Path) -> None:
    port = free_port()
    log = MetricsLog(tmp_path, "none", [], PrometheusTracker(port, "run"))
    log.show_ranks([0.25, 0.5])
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    log.close()
    assert 'smollm2_rank_step_seconds{rank="0",run="run"} 0.25' in text
    assert 'smollm2_rank_step_seconds{rank="1",run="run"} 0.5' in text


def test_how_saving_goes_is_in_every_form(tmp_path: Path) -> None:
    port = free_port()
    log = MetricsLog(tmp_path, LogSettings().loggers, [], PrometheusTracker(port, "run"))
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
