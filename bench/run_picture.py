"""A run as one picture: its curves, and lines of its log, as SVG.

    python -m bench.run_picture --log tiny.log --picture tiny.svg

The run is the one that the variables name, as for every command; its rows come from the store. The
log is what `train` printed, with or without the prefix that compose puts before a line. The lines
shown are its first ones, some steps at equal distances, and its last ones, each as it was printed.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

from app.cli.named_run import existing_run
from app.observe.charts import HEIGHT, WIDTH, Line, line_chart
from app.observe.reported_run import ReportedRun, read_run
from app.settings.load import load_settings

_COLUMNS = 2
_GAP = 16
_TITLE = 30
_ROW = 16  # a line of the log
_CHARACTERS = 110  # of a line; more do not fit
_BEGIN, _STEPS, _END = 8, 12, 8  # lines of the log
_PREFIX = re.compile(r"^\S+\s+\| ")
_STEP = re.compile(r"\bstep \d+/\d+ \| ")
_CURVES = (
    ("train loss", "loss"),
    ("validation loss", "validation_loss"),
    ("learning rate", "learning_rate"),
    ("tokens per second", "tokens_per_second"),
)
_STYLE = (
    "svg{overflow:visible}text{font:11px sans-serif;fill:#5b6475}"
    ".title{font-size:14px;fill:#1c2230}"
    ".log{font:11px monospace;fill:#e6e9ef;white-space:pre}"
    ".grid{stroke:#dde1e7}.mark{stroke:#5b6475;stroke-dasharray:2 3}"
    ".line{fill:none;stroke:#1f6feb;stroke-width:1.3}.dot{fill:#1f6feb}"
)


def excerpt(log: Sequence[str]) -> list[str]:
    """The lines that are shown. An ellipsis stands before and after the steps, where lines are
    left out; between them the numbers of the steps say it."""
    lines = [_PREFIX.sub("", line.rstrip()) for line in log if line.strip()]
    begin, end = lines[:_BEGIN], lines[_BEGIN:][-_END:]
    between = lines[_BEGIN : len(lines) - len(end)]
    steps = [line for line in between if _STEP.search(line)]
    if len(between) <= _STEPS:
        return [*begin, *between, *end]
    return [*begin, "…", *steps[:: -(-len(steps) // _STEPS) or 1], "…", *end]


def picture(run: ReportedRun, log: Sequence[str]) -> str:
    """The whole SVG. Raises ValueError for a run that has no rows yet."""
    if not run.rows:
        raise ValueError(f"{run.name} has no rows yet: there is nothing to draw")
    starts = [attempt.start_step for attempt in run.attempts if attempt.start_step]
    charts = []
    for title, field in _CURVES:
        line = Line.of((row.step, getattr(row, field)) for row in run.rows)
        if line.xs:
            charts.append((title, line_chart(line, starts, title)))
    lines = excerpt(log)
    wide = _COLUMNS * (WIDTH + _GAP) + _GAP
    rows = -(-len(charts) // _COLUMNS)
    top = 2 * _GAP + rows * (_TITLE + HEIGHT)
    high = top + (len(lines) + 1) * _ROW + _GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" '
        f'width="{wide}" height="{high}"><style>{_STYLE}</style>',
        f'<rect width="{wide}" height="{high}" fill="white"/>',
    ]
    for number, (title, chart) in enumerate(charts):
        x = _GAP + number % _COLUMNS * (WIDTH + _GAP)
        y = _GAP + number // _COLUMNS * (_TITLE + HEIGHT)
        placed = f'<svg x="{x}" y="{y + _TITLE}" width="{WIDTH}" height="{HEIGHT}" '
        parts.append(f'<text class="title" x="{x}" y="{y + 18}">{escape(title)}</text>')
        parts.append(placed + chart.removeprefix("<svg "))
    parts.append(
        f'<rect y="{top - _GAP}" width="{wide}" height="{high - top + _GAP}" fill="#12151b"/>'
    )
    for number, text in enumerate(lines, 1):
        short = text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "…"
        y = top + number * _ROW - _GAP // 2
        parts.append(f'<text class="log" x="{_GAP}" y="{y}">{escape(short)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--log", type=Path, required=True, help="what `train` printed")
    parser.add_argument("--picture", type=Path, required=True, help="the SVG to write")
    given = parser.parse_args(arguments)
    run = read_run(existing_run(load_settings({})))
    log = given.log.read_text("utf-8", "replace").splitlines()
    given.picture.parent.mkdir(parents=True, exist_ok=True)
    given.picture.write_text(picture(run, log), "utf-8")
    print(given.picture)


if __name__ == "__main__":
    main(sys.argv[1:])
