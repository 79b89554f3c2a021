"""Which page a path leads to."""

from pathlib import Path

import pytest

from app.observe.live import LiveRuns, PageLimits
from app.observe.pages import page_at
from app.observe.report import Served
from app.observe.reported_run import ReportedRun
from app.run.record import create_record
from app.stores.opening import open_place, open_store
from tests.support.stored_run import IDENTITY

NOW = PageLimits(fresh_seconds=0.0, list_seconds=0.0, rest=0.0, patience_seconds=30.0)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


def runs(uri: str, *names: str) -> LiveRuns:
    for name in names:
        create_record(open_store(uri, name), name, IDENTITY, 100)
    return LiveRuns(lambda: open_place(uri), uri, NOW)


def test_the_only_run_is_at_home_and_of_several_the_one_that_is_named(uri: str) -> None:
    assert "<h1>one</h1>" in page_at("/", runs(uri, "one"), uri)[1]
    several = runs(uri, "other")
    assert "<h1>Runs</h1>" in page_at("/", several, uri)[1]
    assert "<h1>other</h1>" in page_at("/", several, uri, home="other")[1]
    assert "<h1>Runs</h1>" in page_at("/", several, uri, home="not begun")[1]


def test_each_of_many_runs_has_its_page_also_those_that_the_list_has_no_room_for(uri: str) -> None:
    names = [f"run{number:03d}" for number in range(120)]
    many = runs(uri, *names)
    listed = page_at("/runs/", many, uri)[1]
    assert "The newest 100 of 120 runs" in listed and "/runs/run119" not in listed
    for name in (names[0], names[-1]):
        code, content = page_at(f"/runs/{name}", many, uri)
        assert code == 200 and f"<h1>{name}</h1>" in content
    assert page_at("/runs/run120", many, uri)[0] == 404


def test_a_run_that_is_asked_for_first_leads_to_the_others(uri: str) -> None:
    assert 'href="/runs/two"' in page_at("/runs/one", runs(uri, "one", "two"), uri)[1]


def test_a_bug_in_the_page_of_one_run_is_said_on_it_and_hides_no_other(
    uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    def made(run: ReportedRun, served: Served) -> str:
        if run.name == "bad":
            raise ValueError("nobody thought of this")
        return "good"

    both = runs(uri, "bad", "good")
    assert "a bug of this page" in page_at("/runs/bad", both, uri, page_of=made)[1]
    assert page_at("/runs/good", both, uri, page_of=made)[1] == "good"
    assert "nobody thought of this" in caplog.text
