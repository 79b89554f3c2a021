"""A line chart as SVG, from the standard library alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# Okabe and Ito's palette, which people with colour blindness can tell apart.
_COLOURS = ("#000000", "#56B4E9", "#0072B2", "#E69F00", "#D55E00", "#009E73")
_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 32, 44


@dataclass(frozen=True)
class Curve:
    """Points (step, lowest, middle, highest loss)."""

    name: str
    points: Sequence[tuple[int, float, float, float]]


def draw(curves: Sequence[Curve], goals: Sequence[float]) -> str:
    """Loss over steps: lines for the middle, bands for the range, dashed lines at `goals`."""
    last = max(point[0] for curve in curves for point in curve.points)
    losses = [loss for curve in curves for point in curve.points for loss in point[1:]]
    low, high = min(losses) - 0.1, max(losses) + 0.1

    def x(step: float) -> float:
        return round(_LEFT + step / last * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(loss: float) -> float:
        return round(_TOP + (high - loss) / (high - low) * (_HEIGHT - _TOP - _BOTTOM), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for step in range(0, last + 1, 50):
        parts.append(_text(x(step), _HEIGHT - _BOTTOM + 16, str(step), "middle"))
    for tick in range(math.ceil(2 * low), math.floor(2 * high) + 1):
        height = y(tick / 2)
        parts.append(_line(_LEFT, height, _WIDTH - _RIGHT, height, "#dddddd"))
        parts.append(_text(_LEFT - 6, height + 4, f"{tick / 2:.1f}", "end"))
    parts.append(_text(_WIDTH / 2, _HEIGHT - 8, "optimizer steps", "middle"))
    parts.append(_text(_LEFT, 18, "validation loss, nats per token", "start"))
    for goal in goals:
        parts.append(_line(_LEFT, y(goal), _WIDTH - _RIGHT, y(goal), "#666666", dashed=True))
    for number, (curve, colour) in enumerate(zip(curves, _COLOURS, strict=False)):
        forth = [(x(step), y(highest)) for step, _, _, highest in curve.points]
        back = [(x(step), y(lowest)) for step, lowest, _, _ in reversed(curve.points)]
        middle = [(x(step), y(loss)) for step, _, loss, _ in curve.points]
        parts.append(
            f'<polygon points="{_points(forth + back)}" fill="{colour}" fill-opacity="0.15"/>'
        )
        parts.append(
            f'<polyline points="{_points(middle)}" fill="none" stroke="{colour}" '
            'stroke-width="1.8"/>'
        )
        line = _TOP + 30 + 18 * number
        parts.append(_line(_WIDTH - 210, line, _WIDTH - 190, line, colour))
        parts.append(_text(_WIDTH - 184, line + 4, curve.name, "start"))
    return "\n".join([*parts, "</svg>", ""])


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="4 4"' if dashed else ""
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" stroke-width="1.5"'
        f"{dash}/>"
    )
