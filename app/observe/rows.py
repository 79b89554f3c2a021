"""Rows: the numbers of one step each, as lines of metrics.jsonl, and as a line for the log."""

import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, overload

from pydantic import Field, TypeAdapter, ValidationError

from app.console import counted, duration
from app.errors import NotFound
from app.failures import disk_failures
from app.run.layout import METRICS_KEY
from app.state.identity import HIGHEST_STEP
from app.stores.contract import ReadableStore

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
_MAX_METRICS_BYTES = 1 << 30
_LEAST_BAR = 20  # columns, with its share in front


_Count = Annotated[int, Field(ge=0, lt=2**62)]


@dataclass(frozen=True)
class Row:
    """One line of metrics.jsonl. Loss in nats per token, time in seconds since 1970.

    `mfu` counts causal attention once, `mfu_full` the full square of it: both are in use.
    Three say how saving goes: the age of the newest checkpoint, how many this attempt
    committed, and how many tries failed since the last one. They are None in rows of versions
    that did not know them yet.
    """

    step: Annotated[int, Field(ge=0, le=HIGHEST_STEP)]
    tokens: _Count
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float | None
    mfu: float | None
    validation_loss: float | None
    attempt: _Count
    time: Annotated[float, Field(ge=-1e12, le=1e12)]
    checkpoint_age_seconds: float | None = None
    saves_committed: _Count | None = None
    failed_saves: _Count | None = None
    validation_perplexity: float | None = None
    mfu_full: float | None = None


_ROW = TypeAdapter(Row)


@dataclass(frozen=True)
class Beginning:
    """The first `count` of `parts`, a list that only grows: nothing is copied to remember it.

    `content` joins them, which any thread may do while the list grows.
    """

    parts: Sequence[bytes]
    count: int

    def content(self) -> bytes:
        return b"".join(self.parts[: self.count])


def stored_rows(store: ReadableStore) -> list[Row]:
    """Every row in the store; a line that cannot be read is left out."""
    try:
        content, _ = store.get(METRICS_KEY, max_bytes=_MAX_METRICS_BYTES)
    except NotFound:
        return []
    rows, unreadable = decode_rows(content)
    if unreadable:
        log.warning("%s/%s: %d unreadable lines left out", store.uri, METRICS_KEY, unreadable)
    return rows


def local_rows(directory: Path) -> list[Row]:
    """Every row that the last attempt on this volume left, also those of steps that are lost."""
    path = directory / METRICS_FILE
    with disk_failures(f"DATA_DIR: {directory}"):
        return decode_rows(path.read_bytes())[0] if path.exists() else []


def rows_left_here(directory: Path, former: Sequence[Path], stored: Sequence[Row]) -> list[Row]:
    """Every row that the last attempt of a run left on this volume in `directory`.

    Earlier versions kept the logs of several runs of one name together, in the folders `former`.
    Rows from there are this run's if one of them is among the `stored` rows.
    """
    if rows := local_rows(directory):
        return rows
    older = (local_rows(folder) for folder in former)
    return next((rows for rows in older if set(rows) & set(stored)), [])


def decode_rows(content: bytes) -> tuple[list[Row], int]:
    """The rows, and how many lines could not be read: a kill can cut a local file's last one."""
    rows, unreadable = [], 0
    for line in io.BytesIO(content):
        try:
            rows.append(_ROW.validate_json(line))
        except ValidationError:
            unreadable += 1
    return rows, unreadable


def encode_row(row: Row) -> bytes:
    """One line of metrics.jsonl."""
    return (json.dumps(vars(row)) + "\n").encode()


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
    parts.append(_saved(row.checkpoint_age_seconds))
    if row.failed_saves:
        parts.append(f"{counted(row.failed_saves, 'failed save')} since")
    return " | ".join(parts)


def _saved(age: float | None) -> str:
    """`age` of the newest checkpoint in seconds; None before the first one."""
    return "not saved yet" if age is None else f"saved {duration(age)} ago"


def bar_format(
    row: Row | None, step: int, target: int, step_seconds: float, age: float | None, columns: int
) -> str:
    """What tqdm shows in a terminal of so many columns: the notes that fit, the most telling first.

    They come from the last `row`, and `age` is that of the newest checkpoint in seconds. What room
    is left is the bar's. The last column stays free, since some terminals would begin a new line.
    """
    notes = {"step": f"{step}/{target}", "saved": _saved(age)}
    if row is not None:
        eta = duration((target - step) * step_seconds)
        notes |= {"loss": f"loss {row.loss:.3f}", "eta": f"ETA {eta}"}
        notes |= {"speed": f"{step_seconds:.2f} s/step", "rate": f"lr {row.learning_rate:.2e}"}
    shown: list[str] = []
    for name in ("step", "saved", "loss", "eta", "speed", "rate"):
        beside_bar = _LEAST_BAR if name in ("speed", "rate") else 0
        if name in notes and len(_joined(notes, [*shown, name])) + beside_bar < columns:
            shown.append(name)
    text = _joined(notes, shown)
    return f"{{percentage:3.0f}}%|{{bar}}| {text}" if columns - len(text) > _LEAST_BAR else text


def _joined(notes: Mapping[str, str], shown: Sequence[str]) -> str:
    order = ("step", "loss", "saved", "eta", "speed", "rate")
    return " | ".join(notes[name] for name in order if name in shown)
