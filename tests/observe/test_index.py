"""The list of runs as a page."""

from app.observe.activity import Activity
from app.observe.index import index
from app.observe.listed import RunLine
from app.observe.report import Served

SERVED = Served((), None, "/live.js", 10)


def lines(count: int) -> list[RunLine]:
    return [RunLine(f"run{number}", Activity("idle", "idle", ()), None) for number in range(count)]


def test_of_more_runs_than_a_page_has_room_for_the_newest_are_shown_and_all_are_counted() -> None:
    found = index("file:///x", lines(1_200), SERVED)
    assert found.count('href="/runs/run') == 100
    assert "/runs/run99" in found and "/runs/run100" not in found
    assert "The newest 100 of 1,200 runs. The page of each is /runs/NAME." in found


def test_as_many_runs_as_there_is_room_for_are_all_shown() -> None:
    found = index("file:///x", lines(100), SERVED)
    assert found.count('href="/runs/run') == 100 and "The newest" not in found
