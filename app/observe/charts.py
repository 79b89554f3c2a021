"""Line charts as inline SVG, for pages that load nothing from elsewhere.

A picture can show only two of a million points in each column of pixels, the lowest and the
highest. Only those are drawn, so that a page stays small and no spike is lost.
"""

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 218  # units of the viewBox; about the pixels of a phone
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 16, 20, 38
_COLUMNS = 2 * (WIDTH - _LEFT - _RIGHT)
_LARGEST = 1e30  # larger values are left out: their differences could overflow
_DOTTED_UP_TO = 60  # points; each gets a dot as long as there are no more


@dataclass(frozen=True)
class Line:
    """Points in the order in which they are joined. What cannot be drawn is left out."""

    xs: Sequence[float]
    ys: Sequence[float]

    @classmethod
    def of(cls, points: Iterable[tuple[float, float | None]]) -> "Line":
        xs, ys = array("d"), array("d")
        for x, y in points:
            if y is not None and abs(x) < _LARGEST and abs(y) < _LARGEST:  # False for a NaN too
                xs.append(x)
                ys.append(y)
        return cls(xs, ys)

    def envelope(self, columns: int) -> list[tuple[float, float]]:
        """At most two points for each of `columns` equal parts of the x axis: its lowest and
        its highest y, in the order of their x."""
        low, high = min(self.xs), max(self.xs)
        width = high - low or 1.0
        lowest: dict[int, int] = {}
        highest: dict[int, int] = {}
        for index, (x, y) in enumerate(zip(self.xs, self.ys, strict=True)):
            column = min(columns - 1, int(columns * ((x - low) / width)))
            if column not in lowest:
                lowest[column] = highest[column] = index
            elif y < self.ys[lowest[column]]:
                lowest[column] = index
            elif y > self.ys[highest[column]]:
                highest[column] = index
        kept = {*lowest.values(), *highest.values()}
        return sorted((self.xs[index], self.ys[index]) for index in kept)


def line_chart(
    line: Line, marks: Sequence[float], described: str, units: tuple[str, str] = ("", "")
) -> str:
    """An SVG element. `marks` are x values to draw a vertical line at, `described` is read out.
    `units` are those of the x and of the y axis."""
    points = line.envelope(_COLUMNS)
    x_low, x_high = min(line.xs), max(line.xs)
    y_low, y_high = _padded(min(y for _, y in points), max(y for _, y in points))
    wide, high = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM

    def place_x(x: float) -> float:
        return _LEFT + wide * (x - x_low) / (x_high - x_low) if x_high > x_low else _LEFT + wide / 2

    def place_y(y: float) -> float:
        return _TOP + high * (y_high - y) / (y_high - y_low)

    last = f", {short(line.ys[-1])} {units[1]} at {units[0]} {short(line.xs[-1])}"
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(described + last)}">',
        f'<text x="4" y="11">{escape(units[1])}</text>',
        f'<text x="{_LEFT + wide / 2:.0f}" y="{HEIGHT - 5}" text-anchor="middle">'
        f"{escape(units[0])}</text>",
    ]
    for tick in ticks(y_low, y_high, 4):
        y = place_y(tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(
            f'<text x="{_LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{short(tick)}</text>'
        )
    below = HEIGHT - _BOTTOM + 15
    for tick in ticks(x_low, x_high, 5):
        x = f"{place_x(tick):.1f}"
        parts.append(f'<text x="{x}" y="{below}" text-anchor="middle">{short(tick)}</text>')
    inside = {f"{place_x(mark):.1f}" for mark in marks if x_low < mark < x_high}
    for x in sorted(inside, key=float):
        parts.append(f'<line class="mark" x1="{x}" x2="{x}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
    path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in points)
    parts.append(f'<polyline class="line" points="{path}"/>')
    if len(points) <= _DOTTED_UP_TO:
        parts += [
            f'<circle class="dot" cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="2"/>'
            for x, y in points
        ]
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float, count: int) -> Iterator[float]:
    """About `count` round numbers from `low` to `high`: multiples of 1, 2, 2.5 or 5 times 10^k."""
    if not high - low > max(1e-12 * max(abs(low), abs(high)), 1e-200):
        yield low
        return
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next((factor for factor in (1, 2, 2.5, 5) if factor * power >= raw), 10)
    first = math.ceil(low / step)
    for multiple in range(first, first + 2 * count + 2):
        if multiple * step > high:
            return
        yield multiple * step


def short(value: float) -> str:
    """1.2M, 35k, 420, 0.0003: a number for an axis."""
    size = abs(value)
    if size >= 1e15:
        return f"{value:.2g}"
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size >= 10 * factor or (size >= factor and unit != "k"):
            return f"{value / factor:.4g}{unit}"
    return f"{value:.4g}"


def _padded(low: float, high: float) -> tuple[float, float]:
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room
