"""The report of a run: one page of HTML with curves and the story of its attempts.

It is made from metrics.jsonl, run.json and the records of the attempts, and needs nothing
else: no script, no font, no picture from elsewhere. `report/index.html` in the store is
written when an attempt ends; `python -m app report` writes the same page here.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from itertools import pairwise
from pathlib import Path

from app.console import counted, duration
from app.errors import AppError
from app.observe.charts import Line, line_chart, short
from app.observe.reported_run import ReportedRun, read_run
from app.observe.rows import perplexity
from app.run.clock import utc_now
from app.run.journal import TARGET_REACHED, AttemptRecord
from app.run.layout import REPORT_KEY
from app.run.lease import WriteRight
from app.stores.contract import Store

_LONGEST_TEXT = 300

log = logging.getLogger(__name__)


def publish(store: Store, lease: WriteRight) -> None:
    """Put the page into the store.

    All that the run needs is committed by then, so an error is only logged. The lease keeps a page
    that arrives late from replacing one that a later attempt wrote.
    """
    try:
        lease.put(REPORT_KEY, page(read_run(store)).encode())
    except AppError as error:
        log.warning("the report was not written: %s", error)
    except Exception:  # a bug in the report must not end a run
        log.exception("the report was not written")


def page(run: ReportedRun) -> str:
    """The page. All text in it is escaped, and its size does not grow with the rows."""
    name = _text(run.name)
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<style>{Path(__file__).with_name('report.css').read_text('utf-8')}</style></head><body><main>\n"
        f"<h1>{name}</h1>\n"
        f'<p class="quiet">{_text(_subtitle(run))}</p>\n'
        f'<dl class="facts">{"".join(_facts(run))}</dl>\n'
        f'<section class="charts">{"".join(_charts(run))}</section>\n'
        f"{_attempts(run)}\n"
        f'<p class="quiet">written {utc_now()[:16].replace("T", " ")} UTC</p>\n'
        "</main></body></html>\n"
    )


def _subtitle(run: ReportedRun) -> str:
    if run.record is None:
        return "no run.json"
    identity = run.record.identity
    count = run.parameter_count
    parameters = "" if count is None else f", {count:,} parameters"
    return f"{identity.model}{parameters}; data {identity.dataset}; seed {identity.seed}"


def _facts(run: ReportedRun) -> Iterator[str]:
    last = run.rows[-1] if run.rows else None
    of_target = "" if run.target is None else f"of {run.target:,}"
    yield _fact("step", f"{last.step if last else 0:,}", of_target)
    if last is None:
        yield _fact("rows", "none", "nothing is committed yet")
        return
    finite = [row for row in run.rows if math.isfinite(row.loss)]
    per_step = last.tokens // max(1, last.step)
    yield _fact("tokens", short(last.tokens), f"{per_step:,} in each step")
    if finite:
        best = min(finite, key=lambda row: row.loss)
        yield _fact(
            "train loss", f"{finite[-1].loss:.4f}", f"best {best.loss:.4f}, step {best.step:,}"
        )
    evaluated = [row for row in run.rows if _finite(row.validation_loss)]
    if evaluated:
        value = evaluated[-1].validation_loss or 0.0
        yield _fact(
            "validation loss",
            f"{value:.4f}",
            f"perplexity {perplexity(value):,.1f}, step {evaluated[-1].step:,}",
        )
    lost = sum(attempt.steps_lost for attempt in run.attempts)
    yield _fact("attempts", str(len(run.attempts)), f"{counted(lost, 'step')} made twice")
    spans = run.spans
    if spans:
        whole = max(end for _, end, _ in spans) - spans[0][0]
        busy = sum(attempt.seconds for attempt in run.attempts)
        yield _fact("training", duration(busy), f"of {duration(whole)} since the first start")


def _charts(run: ReportedRun) -> Iterator[str]:
    rows, began = run.rows, run.rows[0].time if run.rows else 0.0
    starts = [attempt.start_step for attempt in run.attempts if attempt.start_step]
    by_step: tuple[tuple[str, str], ...] = (
        ("train loss", "loss"),
        ("validation loss", "validation_loss"),
        ("learning rate", "learning_rate"),
        ("tokens per second", "tokens_per_second"),
        ("gradient norm", "grad_norm"),
    )
    for title, field in by_step:
        yield _figure(title, Line.of((row.step, getattr(row, field)) for row in rows), starts)
    unit, seconds = _time_unit(max((row.time - began for row in rows), default=0.0))
    by_time = Line.of(((row.time - began) / seconds, row.step) for row in rows)
    yield _figure(f"steps by {unit}", by_time, [])


def _time_unit(span: float) -> tuple[str, float]:
    """The unit in which a span of so many seconds is drawn, and its seconds."""
    units = (("hours", 3600.0), ("minutes", 60.0))
    return next((unit for unit in units if span >= 2 * unit[1]), ("seconds", 1.0))


def _figure(title: str, line: Line, marks: Sequence[float]) -> str:
    if not line.xs:
        return ""
    return (
        f"<figure><figcaption>{_text(title)}</figcaption>{line_chart(line, marks, title)}</figure>"
    )


def _attempts(run: ReportedRun) -> str:
    attempts = run.attempts
    if not attempts:
        return ""
    columns = ("", "attempt", "started (UTC)", "ran", "from", "to", "lost", "1st step", "saves",
               "failed", "stall", "ended")  # fmt: skip
    lost = {before.epoch: after.steps_lost for before, after in pairwise(attempts)}
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    body = "".join(_attempt_row(attempt, lost.get(attempt.epoch)) for attempt in attempts)
    legend = " ".join(
        f'<span><i class="{kind}"></i>{_text(words)}</span>' for kind, words in _KINDS.items()
    )
    return (
        f"<h2>Attempts</h2>{_timeline(run)}"
        f'<p class="legend">{legend}</p>'
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
        '<p class="quiet">lost: steps behind the last checkpoint, made again by the next attempt. '
        "1st step: from the start of the process, in seconds. stall: how long saving held training "
        "up, in seconds. Dashed lines in the curves: an attempt went on from here.</p>"
    )


def _attempt_row(attempt: AttemptRecord, lost: int | None) -> str:
    first = attempt.seconds_to_first_step
    cells = (
        attempt.started_at[:19].replace("T", " "),
        duration(attempt.seconds),
        f"{attempt.start_step:,}",
        f"{attempt.step:,}",
        "–" if lost is None else f"{lost:,}",
        "–" if first is None else f"{first:.1f}",
        str(attempt.saves),
        str(attempt.failed_saves),
        f"{attempt.stall_seconds:.2f}",
        _ended(attempt),
    )
    rest = "".join(f"<td>{_text(cell)}</td>" for cell in cells)
    return f'<tr><td><i class="{_kind(attempt)}"></i></td><td>{attempt.epoch}</td>{rest}</tr>'


def _timeline(run: ReportedRun) -> str:
    """One bar for each attempt, from its start to its end; in the gaps nothing was trained."""
    spans = run.spans
    if not spans:
        return ""
    began = spans[0][0]
    whole = max(1.0, max(end for _, end, _ in spans) - began)
    bars = "".join(
        f'<rect class="{_kind(attempt)}" x="{1000 * (start - began) / whole:.1f}" y="0" '
        f'height="20" width="{max(2.0, 1000 * (end - start) / whole - 0.5):.1f}">'
        f"<title>attempt {attempt.epoch}: {_text(_ended(attempt))}</title></rect>"
        for start, end, attempt in spans
    )
    first, last = (
        datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M")
        for moment in (began, began + whole)
    )
    return (
        '<svg class="timeline" viewBox="0 0 1000 20" preserveAspectRatio="none" role="img" '
        f'aria-label="timeline of attempts">{bars}</svg>'
        f'<p class="ends"><span>{first}</span><span>{duration(whole)} in all</span>'
        f"<span>{last}</span></p>"
    )


_KINDS = {
    "done": TARGET_REACHED,
    "stopped": "asked to stop",
    "failed": "ended with an error",
    "unknown": "no end recorded: killed, or still running",
}


def _kind(attempt: AttemptRecord) -> str:
    if attempt.ended is None:
        return "unknown"
    if attempt.ended.startswith("exit 143"):
        return "stopped"
    return "done" if attempt.ended.startswith(TARGET_REACHED) else "failed"


def _ended(attempt: AttemptRecord) -> str:
    return attempt.ended or _KINDS["unknown"]


def _fact(name: str, value: str, note: str) -> str:
    return f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd><dd>{_text(note)}</dd></div>"


def _text(text: str) -> str:
    """Any text, made safe and short enough for the page."""
    text = text.encode("utf-8", "replace").decode()
    return escape(text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}…")


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
