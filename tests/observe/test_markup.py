"""What becomes text on a page, whatever a store says."""

import pytest

from app.observe.markup import moment


@pytest.mark.parametrize(
    ("unix", "said"),
    [
        (0.0, "1970-01-01 00:00:00"),
        (-1e12, "-1,000,000,000,000 s after 1970"),
        (1e300, f"{1e300:,.0f} s after 1970"),
        (float("nan"), "nan s after 1970"),
    ],
)
def test_every_number_is_some_moment(unix: float, said: str) -> None:
    assert moment(unix) == said
