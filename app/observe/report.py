"""The report of a run: one page of HTML with its curves, its attempts and what it is doing.

It is made from what lies in the store, and needs nothing else: no script, no font, no picture from
elsewhere. `report/index.html` in the store is written when an attempt ends, `python -m app report`
writes the same page here, and `--serve` serves it anew whenever somebody looks.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from app.console import counted, duration
from app.errors import AppError
from app.observe import sections
from app.observe.activity import activity_of, problems_of
from app.observe.charts import Line, line_chart, short
from app.observe.evaluation_table import evaluations
from app.observe.goodput import measured
from app.observe.markup import ago, fact, moment, seconds_of, text
from app.observe.reported_run import ReportedRun, read_run
from app.observe.rows import perplexity
from app.run.layout import REPORT_KEY
from app.run.lease import WriteRight
from app.stores.contract import Store

_MOST_PROBLEMS = 10
# A page without a script of its own.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """What a served page says beside its run: the names of all runs, and what is wrong now.

    `script` is the path of the script that looks for a newer page, `again` after how many seconds a
    browser without scripts does.
    """

    runs: Sequence[str]
    problem: str | None
    script: str
    again: int


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


def page(run: ReportedRun, served: Served | None = None) -> str:
    """The page. All text in it is escaped, and its size does not grow with the rows."""
    doing = activity_of(run)
    notes = "".join(f"<p>{text(note)}</p>" for note in doing.notes)
    return document(
        run.name,
        f"<h1>{text(run.name)}</h1>\n"
        f'<p class="quiet">{text(_subtitle(run))}</p>\n'
        f'<section class="now {doing.kind}" aria-label="now"><h2>{text(doing.headline)}</h2>'
        f"{notes}</section>\n"
        f"{_problems(run)}"
        f'<dl class="facts">{"".join(_facts(run))}</dl>\n'
        f'<section class="charts">{"".join(_charts(run))}</section>\n'
        f"{sections.attempts(run)}\n{sections.checkpoints(run)}\n"
        f"{evaluations(run.evaluations)}\n{sections.samples(run)}\n"
        f'<p class="quiet">as of {moment(run.read_at)} UTC</p>\n',
        served,
    )


def document(title: str, content: str, served: Served | None) -> str:
    """A whole document around `content`, which is markup; `title` is text."""
    again = policy = navigation = problem = ""
    if served is None:
        policy = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    else:
        again = (
            f'<script src="{text(served.script)}" defer></script>'
            f'<noscript><meta http-equiv="refresh" content="{served.again}"></noscript>'
        )
        current = ' aria-current="page"'
        links = "".join(
            f'<a href="{path_of(name)}"{current if name == title else ""}>{text(name)}</a>'
            for name in served.runs
        )
        if len(served.runs) > 1:
            navigation = f'<nav aria-label="runs"><a href="/runs/">all runs</a>{links}</nav>\n'
        if served.problem:
            problem = f'<p class="problem" role="alert">{text(served.problem, 1000)}</p>\n'
    style = Path(__file__).with_name("report.css").read_text("utf-8")
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{policy}{again}<style>{style}</style></head><body><main>\n"
        f"{navigation}{problem}{content}</main></body></html>\n"
    )


def path_of(name: str) -> str:
    """The path of the page of the run `name`, on the server of pages."""
    return f"/runs/{quote(name, safe='')}"


def _problems(run: ReportedRun) -> str:
    found = list(problems_of(run))[:_MOST_PROBLEMS]
    return "".join(f'<p class="problem">{text(problem, 1000)}</p>\n' for problem in found)


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
    told = run.lease.step if run.lease and run.alive else None
    yield fact("step", f"{max(last.step if last else 0, told or 0):,}", of_target)
    if last is None:
        yield fact("rows", "none", "nothing is committed yet")
        return
    finite = [row for row in run.rows if math.isfinite(row.loss)]
    per_step = last.tokens // max(1, last.step)
    yield fact("tokens", short(last.tokens), f"{per_step:,} in each step")
    if finite:
        best = min(finite, key=lambda row: row.loss)
        yield fact(
            "train loss", f"{finite[-1].loss:.4f}", f"best {best.loss:.4f}, step {best.step:,}"
        )
    evaluated = [row for row in run.rows if _finite(row.validation_loss)]
    if evaluated:
        value = evaluated[-1].validation_loss or 0.0
        yield fact(
            "validation loss",
            f"{value:.4f}",
            f"perplexity {perplexity(value):,.1f}, step {evaluated[-1].step:,}",
        )
    lost = sum(attempt.steps_lost for attempt in run.attempts)
    yield fact("attempts", str(len(run.attempts)), f"{counted(lost, 'step')} made twice")
    spans = run.spans
    if spans:
        whole = max(span.end for span in spans) - spans[0].start
        busy = sum(span.end - span.start for span in spans)
        yield fact("training", duration(busy), f"of {duration(whole)} since the first start")
        if (share := measured(run).goodput) is not None:
            yield fact(
                "goodput",
                f"{share:.1%}",
                "of the time until it was finished went into steps that were kept",
            )
    saved = [attempt for attempt in run.checkpoints if attempt.whole and attempt.created_at]
    at = seconds_of(saved[0].created_at or "") if saved else None
    if at is not None:
        yield fact("saved", ago(run.read_at - at), f"step {saved[0].name.step:,}")


def _charts(run: ReportedRun) -> Iterator[str]:
    rows, began = run.rows, run.rows[0].time if run.rows else 0.0
    starts = [attempt.start_step for attempt in run.attempts if attempt.start_step]
    for title, unit, field in _BY_STEP:
        line = Line.of((row.step, getattr(row, field)) for row in rows)
        yield _figure(title, line, starts, ("step", unit))
    unit, seconds = _time_unit(max((row.time - began for row in rows), default=0.0))
    by_time = Line.of(((row.time - began) / seconds, row.step) for row in rows)
    yield _figure("progress", by_time, [], (f"{unit} since the first step", "step"))


_BY_STEP = (
    ("train loss", "nats per token", "loss"),
    ("validation loss", "nats per token", "validation_loss"),
    ("learning rate", "per step", "learning_rate"),
    ("throughput", "tokens per second", "tokens_per_second"),
    ("gradient norm", "before clipping", "grad_norm"),
)


def _time_unit(span: float) -> tuple[str, float]:
    """The unit in which a span of so many seconds is drawn, and its seconds."""
    units = (("hours", 3600.0), ("minutes", 60.0))
    return next((unit for unit in units if span >= 2 * unit[1]), ("seconds", 1.0))


def _figure(title: str, line: Line, marks: Sequence[float], units: tuple[str, str]) -> str:
    if not line.xs:
        return ""
    return (
        f"<figure><figcaption>{text(title)}</figcaption>"
        f"{line_chart(line, marks, title, units)}</figure>"
    )


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
