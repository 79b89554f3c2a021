"""Trackers: further forms of the rows, for those who look at a run.

They are made from the rows alone, so whatever is lost of them can be made again.
"""

import csv
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from app.errors import ConfigError
from app.observe.rows import Beginning, Row
from app.run.layout import TENSORBOARD_KEY

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event


class Tracker(Protocol):
    """One further form of the rows.

    `MetricsLog` opens a tracker when an attempt begins, and writes to it the rows of the steps up
    to the one that the attempt resumes from, and then each new row. A tracker that writes files
    replaces those of earlier attempts: what it shows is what was passed to it. Such a tracker is
    closed and opened again in the middle of a run whenever the rows are thinned. All calls
    come from the thread that trains, so they must be quick.

    What can be refused is refused before the run is taken, by `check_logs` or with a ConfigError
    when the tracker is made. Later it may raise only an OSError, which ends the attempt as a
    full disk does.
    """

    def write(self, row: Row) -> None:
        """Show one more row, without waiting for further ones."""
        ...

    def objects(self) -> Mapping[str, Beginning]:
        """What a checkpoint takes along into the store, by key."""
        ...

    def close(self) -> None: ...


class CsvTracker:
    """metrics.csv, for spreadsheets."""

    FILE = "metrics.csv"

    def __init__(self, directory: Path) -> None:
        self._file = (directory / self.FILE).open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, [field.name for field in fields(Row)])
        self._writer.writeheader()

    def write(self, row: Row) -> None:
        self._writer.writerow(vars(row))
        self._file.flush()

    def objects(self) -> dict[str, Beginning]:
        return {}

    def close(self) -> None:
        self._file.close()


class TensorBoardTracker:
    """One event file, which every attempt replaces. A checkpoint takes it along."""

    FILE = TENSORBOARD_KEY.removeprefix("logs/")
    NAMES = tuple(
        field.name
        for field in fields(Row)
        if field.name not in ("step", "tokens", "attempt", "time")
    )

    def __init__(self, directory: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        path = directory / self.FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob("*tfevents*"):
            stale.unlink()
        self._records: list[bytes] = []
        self._file = path.open("wb")
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, row: Row) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = {name: getattr(row, name) for name in self.NAMES}
        summary = Summary(
            value=[
                Summary.Value(tag=name, simple_value=value)
                for name, value in values.items()
                if value is not None
            ]
        )
        self._add(Event(wall_time=row.time, step=row.step, summary=summary))

    def _add(self, event: "Event") -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        self._records.append(record.getvalue())
        self._file.write(self._records[-1])
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def objects(self) -> dict[str, Beginning]:
        return {TENSORBOARD_KEY: Beginning(self._records, len(self._records))}


class PrometheusTracker:
    """The newest row as gauges, served on METRICS_PORT."""

    def __init__(self, port: int, run_name: str) -> None:
        from prometheus_client import CollectorRegistry, Gauge, start_http_server

        registry = CollectorRegistry()
        self._gauges = {
            field.name: Gauge(f"train_{field.name}", field.name, ["run"], registry=registry)
            for field in fields(Row)
        }
        self._rank_seconds = Gauge(
            "smollm2_rank_step_seconds",
            "seconds of a rank's own part of a step, without waiting for others",
            ["run", "rank"],
            registry=registry,
        )
        self._run_name = run_name
        try:
            self._server, self._thread = start_http_server(port, registry=registry)
        except OSError as error:
            raise ConfigError(
                f"METRICS_PORT={port} cannot be served ({error.strerror}): choose another port"
            ) from error

    def write(self, row: Row) -> None:
        for name, value in vars(row).items():
            if value is not None:
                self._gauges[name].labels(self._run_name).set(value)

    def show_ranks(self, step_seconds: Sequence[float]) -> None:
        """Seconds by rank."""
        for rank, seconds in enumerate(step_seconds):
            self._rank_seconds.labels(self._run_name, str(rank)).set(seconds)

    def objects(self) -> dict[str, Beginning]:
        return {}

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def file_trackers(loggers: str, directory: Path) -> list[Tracker]:
    """The trackers that LOGGERS names, with new files in `directory`. Raises OSError."""
    return [opened(directory) for opened in _wanted(loggers)]


def tracker_files(loggers: str) -> list[str]:
    """The files that `file_trackers` makes, as paths below its directory."""
    return [tracker.FILE for tracker in _wanted(loggers)]


def _wanted(loggers: str) -> Iterator[type[TensorBoardTracker] | type[CsvTracker]]:
    wanted = loggers.split(",")
    if "tensorboard" in wanted:
        yield TensorBoardTracker
    if "csv" in wanted:
        yield CsvTracker
