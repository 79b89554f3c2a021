"""The curves of a run as one picture, an SVG file that needs no page around it."""

from collections.abc import Sequence

from app.observe.charts import HEIGHT, WIDTH, Line, line_chart
from app.observe.markup import text
from app.observe.rows import Row

_GAP, _TITLE = 16, 28
_STYLE = (
    "svg{overflow:visible}text{font:10px sans-serif;fill:#5b6475}.title{font-size:13px;"
    "fill:#1c2230}.grid{stroke:#dde1e7}.mark{stroke:#5b6475;stroke-dasharray:2 3;stroke-width:.7}"
    ".line{fill:none;stroke:#1f6feb;stroke-width:1.1;stroke-linejoin:round}.dot{fill:#1f6feb}"
)
_CURVES = (
    ("train loss", "nats per token", "loss"),
    ("validation loss", "nats per token", "validation_loss"),
    ("learning rate", "per step", "learning_rate"),
    ("throughput", "tokens per second", "tokens_per_second"),
)


def picture_of_curves(rows: Sequence[Row], starts: Sequence[int]) -> str:
    """An SVG document, two curves in a row. `starts` are steps from which an attempt went on.

    A curve without a point is left out, and without any the picture is empty.
    """
    lines = {
        (title, unit): Line.of((row.step, getattr(row, field)) for row in rows)
        for title, unit, field in _CURVES
    }
    drawn = [(named, line) for named, line in lines.items() if line.xs]
    width = 2 * WIDTH + 3 * _GAP
    height = (len(drawn) + 1) // 2 * (HEIGHT + _TITLE) + _GAP
    parts = []
    for number, ((title, unit), line) in enumerate(drawn):
        x = _GAP + number % 2 * (WIDTH + _GAP)
        y = number // 2 * (HEIGHT + _TITLE) + _TITLE
        chart = line_chart(line, starts, title, ("step", unit))
        placed = chart.replace(
            "<svg ", f'<svg x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" ', 1
        )
        parts += [f'<text class="title" x="{x}" y="{y - 8}">{text(title)}</text>', placed]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}"><style>{_STYLE}</style>'
        f'<rect width="{width}" height="{height}" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )
