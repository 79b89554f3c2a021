"""The metrics of a run: its rows in metrics.jsonl, and in every tracker that was asked for.

`logs/metrics.jsonl` in the store is the truth. It is written before each manifest, so it reaches
at least as far as any checkpoint. An attempt that resumes at step s keeps the rows up to s and
replaces the rest, so that no step is counted twice.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from app.failures import disk_failures
from app.observe.rows import METRICS_FILE, Beginning, Row, decode_rows, encode_row
from app.observe.trackers import PrometheusTracker, Tracker, file_trackers, tracker_files
from app.run.layout import METRICS_KEY

log = logging.getLogger(__name__)

MOST_ROWS = 100_000  # 35 MB, sent with each checkpoint
STORE_FILE = "store.txt"


def check_logs(directory: Path, loggers: str, store_place: str) -> None:
    """Make the folder of a run's local logs, and note in it which store the run is in.

    Raises AccessDenied, ConfigError or Unavailable where `MetricsLog` could not write. What is in
    its files stays as it is.
    """
    with disk_failures(f"DATA_DIR: {directory}"):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / STORE_FILE).write_text(f"{store_place}\n", "utf-8")
        for file in (METRICS_FILE, *tracker_files(loggers)):
            path = directory / file
            path.parent.mkdir(exist_ok=True)
            path.open("ab").close()


class MetricsLog:
    """The rows of the run so far, here and in every form asked for.

    All of them go into the store with each checkpoint. A run with more than `most_rows` keeps
    every second one of those so far, and so on: its curves stay whole, and do not grow for ever.
    """

    def __init__(
        self,
        directory: Path,
        loggers: str,
        earlier: list[Row],
        prometheus: PrometheusTracker | None = None,
        most_rows: int = MOST_ROWS,
    ) -> None:
        """`loggers` names the files beside metrics.jsonl, `earlier` are the rows of the steps up to
        the one that is resumed from. `prometheus` is closed with the rest.

        Raises Unavailable if DATA_DIR is full.
        """
        self._directory, self._place = directory, f"DATA_DIR: {directory}"
        self._loggers, self._most_rows, self._prometheus = loggers, most_rows, prometheus
        self._open(earlier)

    def _open(self, rows: list[Row]) -> None:
        """Begin every file again, with `rows`."""
        rows = _thinned(rows, self._most_rows)
        self._lines = [encode_row(row) for row in rows]
        self._trackers: list[Tracker] = []
        with disk_failures(self._place):
            self._directory.mkdir(parents=True, exist_ok=True)
            path = self._directory / METRICS_FILE
            path.write_bytes(b"".join(self._lines))
            self._file = path.open("ab")
            self._trackers = file_trackers(self._loggers, self._directory)
            for row in rows:
                self._pass_on(row)

    def add(self, row: Row) -> None:
        """Raises Unavailable if DATA_DIR is full."""
        line = encode_row(row)
        self._lines.append(line)
        with disk_failures(self._place):
            self._file.write(line)
            self._file.flush()
            self._pass_on(row)
        if self._prometheus:
            self._prometheus.write(row)
        if len(self._lines) > self._most_rows:
            self._close_files()
            self._open(decode_rows(b"".join(self._lines))[0])

    def show_ranks(self, step_seconds: Sequence[float]) -> None:
        """Serve what each rank needs for its own part of a step, in seconds."""
        if self._prometheus:
            self._prometheus.show_ranks(step_seconds)

    def objects(self) -> dict[str, Beginning]:
        """What a checkpoint takes along into the store, by key: the rows until now."""
        objects = {METRICS_KEY: Beginning(self._lines, len(self._lines))}
        for tracker in self._trackers:
            objects.update(tracker.objects())
        return objects

    def close(self) -> None:
        """Close everything, also on a disk that takes no more bytes: the store has the rows."""
        self._close_files()
        if self._prometheus:
            self._prometheus.close()

    def _close_files(self) -> None:
        for close in (self._file.close, *(tracker.close for tracker in self._trackers)):
            try:
                close()
            except OSError as error:
                log.warning("the last rows are not in %s: %s", self._place, error.strerror)

    def _pass_on(self, row: Row) -> None:
        for tracker in self._trackers:
            tracker.write(row)


def _thinned(rows: list[Row], most_rows: int) -> list[Row]:
    """At most `most_rows`: the newest row, and every second one before it, as often as needed.

    Rows with a validation loss are left out only while they are more than the others.
    """
    while len(rows) > most_rows:
        evaluated = [row for row in rows if row.validation_loss is not None]
        others = [row for row in rows if row.validation_loss is None]
        if len(evaluated) > len(others):
            evaluated = evaluated[::-2]
        rows = sorted([*evaluated, *others[::-2]], key=lambda row: row.step)
        log.info("metrics: beyond %d rows, every second one is kept", most_rows)
    return rows
