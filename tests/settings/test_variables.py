"""The table of variables."""

import pytest

from app.settings.variables import variables

pytestmark = pytest.mark.usefixtures("nothing_set")


def test_every_variable_has_help_and_a_unique_name() -> None:
    rows = list(variables())
    assert len({row.name for row in rows}) == len(rows)
    assert all(row.info.description for row in rows)
