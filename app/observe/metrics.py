"""The numbers of a run: one row per logged step, in metrics.jsonl and what follows from it.

`logs/metrics.jsonl` in the store is the truth. It is written before each manifest, so
it reaches at least as far as any checkpoint; an attempt that resumes at step s keeps
the rows up to s and replaces the rest, and no step is counted twice. The CSV and the
TensorBoard file are made from the rows.
"""

import csv
import io
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, overload

from pydantic import TypeAdapter, ValidationError

from app.console import duration
from app.errors import ConfigError, NotFound
from app.failures import disk_failures
from app.run.layout import METRICS_KEY, TENSORBOARD_KEY
from app.settings.variables import LogSettings
from app.stores.contract import Store

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

log = logging.getLogger(__name__)

MOST_ROWS = 100_000  # 35 MB, sent with each checkpoint
_MAX_METRICS_BYTES = 1 << 30


@dataclass(frozen=True)
class Row:
    """One line of metrics.jsonl. Loss in nats per token, time in seconds since 1970.

    `mfu` counts causal attention once, `mfu_full` the full square of it: both are in use.
    Three say how saving goes: the age of the newest checkpoint, how many this attempt
    committed, and how many tries failed since the last one. None in rows of before.
    """

    step: int
    tokens: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float | None
    mfu: float | None
    validation_loss: float | None
    attempt: int
    time: float
    checkpoint_age_seconds: float | None = None
    saves_committed: int | None = None
    failed_saves: int | None = None
    validation_perplexity: float | None = None
    mfu_full: float | None = None


_ROW = TypeAdapter(Row)


@dataclass(frozen=True)
class Beginning:
    """The first `count` of `parts`, a list that only grows: taken at once, whatever its length.

    `content` joins them, which any thread may do while the list grows.
    """

    parts: Sequence[bytes]
    count: int

    def content(self) -> bytes:
        return b"".join(self.parts[: self.count])


class Writer(Protocol):
    """A further form of the rows."""

    def write(self, row: Row) -> None: ...
    def close(self) -> None: ...


class CsvWriter:
    """metrics.csv, for spreadsheets."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, [field.name for field in fields(Row)])
        self._writer.writeheader()

    def write(self, row: Row) -> None:
        self._writer.writerow(vars(row))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoardWriter:
    """One event file, which every attempt replaces. `records` are what was written to it."""

    NAMES = tuple(
        field.name
        for field in fields(Row)
        if field.name not in ("step", "tokens", "attempt", "time")
    )

    def __init__(self, directory: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        directory.mkdir(parents=True, exist_ok=True)
        for stale in directory.glob("*tfevents*"):
            stale.unlink()
        self.records: list[bytes] = []
        self._file = (directory / Path(TENSORBOARD_KEY).name).open("wb")
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
        self.records.append(record.getvalue())
        self._file.write(self.records[-1])
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class PrometheusWriter:
    """The newest row as gauges, served on METRICS_PORT."""

    def __init__(self, port: int, run_name: str) -> None:
        from prometheus_client import CollectorRegistry, Gauge, start_http_server

        registry = CollectorRegistry()
        self._gauges = {
            field.name: Gauge(f"train_{field.name}", field.name, ["run"], registry=registry)
            for field in fields(Row)
        }
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

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()


class MetricsLog:
    """The rows of the run so far, here and in every form asked for.

    All of them go into the store with each checkpoint. A run with more than MOST_ROWS keeps
    every second one of those so far, and so on: its curves stay, and their size ends.
    """

    def __init__(
        self, directory: Path, settings: LogSettings, run_name: str, earlier: list[Row]
    ) -> None:
        self._directory, self._place = directory, f"DATA_DIR: {directory}"
        self._wanted = settings.loggers.split(",")
        self._prometheus: PrometheusWriter | None = None
        self._open(earlier)
        if settings.metrics_port:
            self._prometheus = PrometheusWriter(settings.metrics_port, run_name)

    def _open(self, rows: list[Row]) -> None:
        """Begin every file again, with `rows`."""
        rows = _thinned(rows)
        self._lines = [_line(row) for row in rows]
        self._tensorboard: TensorBoardWriter | None = None
        self._writers: list[Writer] = []
        with disk_failures(self._place):
            self._directory.mkdir(parents=True, exist_ok=True)
            path = self._directory / "metrics.jsonl"
            path.write_bytes(b"".join(self._lines))
            self._file = path.open("ab")
            if "tensorboard" in self._wanted:
                self._tensorboard = TensorBoardWriter(self._directory / "tensorboard")
                self._writers.append(self._tensorboard)
            if "csv" in self._wanted:
                self._writers.append(CsvWriter(self._directory / "metrics.csv"))
            for row in rows:
                self._pass_on(row)

    def add(self, row: Row) -> None:
        """Raises Unavailable if DATA_DIR is full."""
        line = _line(row)
        self._lines.append(line)
        with disk_failures(self._place):
            self._file.write(line)
            self._file.flush()
            self._pass_on(row)
        if self._prometheus:
            self._prometheus.write(row)
        if len(self._lines) > MOST_ROWS:
            self._close_files()
            self._open(_rows(b"".join(self._lines))[0])

    def objects(self) -> dict[str, Beginning]:
        """What a checkpoint takes along into the store, by key: the rows until now."""
        objects = {METRICS_KEY: Beginning(self._lines, len(self._lines))}
        if self._tensorboard:
            records = self._tensorboard.records
            objects[TENSORBOARD_KEY] = Beginning(records, len(records))
        return objects

    def close(self) -> None:
        """Close everything, also on a disk that takes no more bytes: the store has the rows."""
        self._close_files()
        if self._prometheus:
            self._prometheus.close()

    def _close_files(self) -> None:
        for close in (self._file.close, *(writer.close for writer in self._writers)):
            try:
                close()
            except OSError as error:
                log.warning("the last rows are not in %s: %s", self._place, error.strerror)

    def _pass_on(self, row: Row) -> None:
        for writer in self._writers:
            writer.write(row)


def stored_rows(store: Store) -> list[Row]:
    """Every row in the store; a line that cannot be read is left out."""
    try:
        content, _ = store.get(METRICS_KEY, max_bytes=_MAX_METRICS_BYTES)
    except NotFound:
        return []
    rows, unreadable = _rows(content)
    if unreadable:
        log.warning("%s/%s: %d unreadable lines left out", store.uri, METRICS_KEY, unreadable)
    return rows


def local_rows(directory: Path) -> list[Row]:
    """Every row that an attempt on this volume wrote down, also those of steps it lost."""
    path = directory / "metrics.jsonl"
    with disk_failures(f"DATA_DIR: {directory}"):
        return _rows(path.read_bytes())[0] if path.exists() else []


def _thinned(rows: list[Row]) -> list[Row]:
    """At most MOST_ROWS: the newest, and every second one before; the evaluations last."""
    while len(rows) > MOST_ROWS:
        evaluated = [row for row in rows if row.validation_loss is not None]
        others = [row for row in rows if row.validation_loss is None]
        if len(evaluated) > len(others):
            evaluated = evaluated[::-2]
        rows = sorted([*evaluated, *others[::-2]], key=lambda row: row.step)
        log.info("metrics: beyond %d rows, every second one is kept", MOST_ROWS)
    return rows


def _rows(content: bytes) -> tuple[list[Row], int]:
    """The rows, and how many lines are none: a kill can tear the last one of a local file."""
    rows, unreadable = [], 0
    for line in io.BytesIO(content):
        try:
            rows.append(_ROW.validate_json(line))
        except ValidationError:
            unreadable += 1
    return rows, unreadable


@overload
def perplexity(loss: float) -> float: ...
@overload
def perplexity(loss: None) -> None: ...
def perplexity(loss: float | None) -> float | None:
    """e to the loss in nats per token; None stays None. Capped where a float64 ends."""
    return None if loss is None else math.exp(min(loss, 700.0))


def step_line(row: Row, target: int, step_seconds: float) -> str:
    """The one tidy line of a step."""
    parts = [
        f"step {row.step}/{target}",
        f"loss {row.loss:.4f}",
        f"lr {row.learning_rate:.2e}",
        f"grad {row.grad_norm:.2f}",
        f"{row.tokens_per_second or 0:,.0f} tok/s",
    ]
    if row.mfu is not None and row.mfu_full is not None:
        parts.append(f"MFU {row.mfu:.1%} causal, {row.mfu_full:.1%} full")
    if row.validation_loss is not None:
        ppl = perplexity(row.validation_loss)
        parts.append(f"val loss {row.validation_loss:.4f} (ppl {ppl:,.1f})")
    parts.append(f"ETA {duration((target - row.step) * step_seconds)}")
    age = row.checkpoint_age_seconds
    parts.append("not saved yet" if age is None else f"saved {duration(age)} ago")
    if row.failed_saves:
        parts.append(f"{row.failed_saves} failed saves since")
    return " | ".join(parts)


def _line(row: Row) -> bytes:
    return (json.dumps(vars(row)) + "\n").encode()
