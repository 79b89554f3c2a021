"""Charts: nothing that matters is lost, and any numbers can be drawn."""

import pytest

from app.observe.charts import Line, line_chart, short, ticks


def test_no_spike_is_lost_on_the_way() -> None:
    line = Line.of((x, 1000.0 if x == 77_777 else 1.0) for x in range(100_000))
    points = line.envelope(100)
    assert (77_777, 1000.0) in points
    assert len(points) <= 200


@pytest.mark.parametrize("low", [-1e-320, 0.0, 1e-9, 3.0, 1e12, -1e29])
@pytest.mark.parametrize("width", [0.0, 1e-320, 1e-12, 1.0, 1e29])
def test_any_range_has_a_chart(low: float, width: float) -> None:
    line = Line.of([(low, low), (low + width, low + width)])
    assert "nan" not in line_chart(line, [low], "any")
    assert len(list(ticks(low, low + width, 4))) <= 12


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (3e-4, "0.0003"), (420, "420"), (5000, "5000"), (35_000, "35k"), (1.2e6, "1.2M")],
)
def test_numbers_on_an_axis_are_short(value: float, text: str) -> None:
    assert short(value) == text
