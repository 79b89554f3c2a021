"""What trackers show: all the numbers of a row."""

import csv
import json
from dataclasses import replace
from pathlib import Path

from app.observe.metrics import MetricsLog
from app.settings.variables import LogSettings
from tests.support.rows import row, scalars


def test_how_saving_goes_is_in_every_file(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, LogSettings().loggers, [])
    log.add(row(1))
    log.add(replace(row(2), checkpoint_age_seconds=61.5, saves_committed=3, failed_saves=4))
    log.close()
    names = ("checkpoint_age_seconds", "saves_committed", "failed_saves")
    assert [scalars(tmp_path, name) for name in names] == [[(2, 61.5)], [(2, 3)], [(2, 4)]]
    with (tmp_path / "metrics.csv").open() as file:
        before, after = csv.DictReader(file)
    assert [before[name] for name in names] == ["", "", ""]
    assert [float(after[name]) for name in names] == [61.5, 3, 4]
    written = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])
    assert [written[name] for name in names] == [61.5, 3, 4]
