"""Many runs: all of them are found, what is wrong with one hides no other, and looking is cheap."""

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from app.errors import Unserved
from app.observe.answers import Requests
from app.observe.listed import RunLine
from app.observe.live import LiveRuns, PageLimits, Watched
from app.observe.reported_run import ReportedRun
from app.run.layout import LEASE, WAITING
from app.run.lease import LeaseRecord
from app.run.record import create_record
from app.stores.documents import encode_document
from app.stores.opening import open_place, open_store
from tests.support.asked import Asked
from tests.support.stored_run import IDENTITY, commit_step

NOW = PageLimits(fresh_seconds=0.0, list_seconds=0.0, rest=0.0, patience_seconds=30.0)
LEASED = LeaseRecord(holder="a:1:x", epoch=1, renewal=5, ttl=10, expires_at=0, released=True)


@pytest.fixture
def volume(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"file://{tmp_path_factory.mktemp('volume')}/store"


def run(uri: str, name: str, expires_at: float = 1_000_000.0) -> None:
    store = open_store(uri, name)
    create_record(store, name, IDENTITY, 100)
    lease = LEASED.model_copy(update={"expires_at": expires_at})
    store.put(LEASE, [encode_document(lease)])
    commit_step(store, 2)


def live(
    uri: str, failing: Callable[[str], object] = str, limits: PageLimits = NOW
) -> tuple[LiveRuns, Asked]:
    asked = Asked(open_place(uri), failing)
    return LiveRuns(lambda: asked, uri, limits), asked  # type: ignore[arg-type,return-value]


def listed(runs: LiveRuns) -> list[RunLine]:
    seen = runs.all()
    assert seen.value is not None and seen.problem is None, seen.problem
    return list(seen.value)


def read(runs: LiveRuns, name: str) -> ReportedRun:
    seen = runs.run(name)
    assert seen is not None and seen.value is not None, name
    return seen.value


def test_every_run_is_found_the_newest_first(volume: str) -> None:
    for number in range(30):
        run(volume, f"run{number}", expires_at=1_000_000.0 + number)
    runs, _ = live(volume)
    assert [line.name for line in listed(runs)] == [f"run{n}" for n in reversed(range(30))]
    assert read(runs, "run0").record is not None


def test_a_folder_that_is_no_run_is_none_and_is_not_listed(volume: str) -> None:
    run(volume, "run")
    open_store(volume, "foreign").put("a/b", [b"x"])
    open_store(volume, "_tokens").put("a/b", [b"x"])
    runs, asked = live(volume)
    assert [line.name for line in listed(runs)] == ["run"]
    for name in ("foreign", "_tokens", "gone"):
        assert runs.run(name) is None
    assert not [key for key in asked.asked if key.startswith("list foreign")]


@pytest.mark.parametrize("moment", [-1e12, 1e12])
def test_a_time_that_no_calendar_has_takes_nothing_down(volume: str, moment: float) -> None:
    run(volume, "good")
    run(volume, "late", expires_at=moment)
    run(volume, "waits")
    told = f'{{"holder": "x", "doing": "y", "since": {moment}, "at": {moment}, "every": 3}}'
    open_store(volume, "waits").put(WAITING, [told.encode()])
    runs, _ = live(volume)
    lines = {line.name: line.activity for line in listed(runs)}
    assert lines.keys() == {"good", "late", "waits"}
    assert lines["waits"].kind == "failed" and "waiting.json is damaged" in lines["waits"].headline
    assert "waiting.json is damaged" in read(runs, "waits").problems[0]


def test_a_bug_at_one_run_is_said_at_its_line_and_in_the_log(
    volume: str, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(key: str) -> None:
        if key.startswith("bad/"):
            raise ValueError("nobody thought of this")

    run(volume, "bad")
    run(volume, "good")
    first, second = listed(live(volume, failing)[0])
    assert (first.name, second.name) == ("bad", "good"), "what is wrong comes first"
    assert "a bug of this page" in first.activity.headline and "idle" in second.activity.headline
    assert "nobody thought of this" in caplog.text


def test_a_run_that_is_not_served_hides_no_other(volume: str) -> None:
    def failing(key: str) -> None:
        if key == f"bad/{LEASE}":
            raise Unserved("bad/lease.json: 500")

    run(volume, "bad")
    run(volume, "good")
    first, second = listed(live(volume, failing)[0])
    assert first.activity.headline == "bad/lease.json: 500" and second.step == 2


def test_who_looks_at_one_run_asks_nothing_of_the_others(volume: str) -> None:
    run(volume, "one")
    run(volume, "other")
    runs, asked = live(volume)
    listed(runs)
    read(runs, "one")
    asked.asked.clear()
    read(runs, "one")
    assert asked.asked == ["one/LATEST", "list one/"]


def test_a_list_in_which_nothing_has_changed_costs_two_small_objects_of_each_run(
    volume: str,
) -> None:
    run(volume, "one")
    run(volume, "other")
    runs, asked = live(volume)
    before = listed(runs)
    asked.asked.clear()
    assert [line.step for line in listed(runs)] == [line.step for line in before] == [2, 2]
    pairs = [f"{name}/{key}" for name in ("one", "other") for key in (LEASE, WAITING)]
    assert sorted(asked.asked) == sorted(["folders", *pairs])


def test_a_live_holder_commits_without_a_new_lease_and_the_list_sees_it(volume: str) -> None:
    run(volume, "run")
    store = open_store(volume, "run")
    lease = LEASED.model_copy(update={"expires_at": 4e9, "ttl": 3_600, "released": False})
    store.put(LEASE, [encode_document(lease)])
    runs, _ = live(volume)
    assert listed(runs)[0].step == 2
    commit_step(store, 4)
    assert listed(runs)[0].step == 4


def test_only_the_newest_few_runs_that_were_looked_at_are_remembered(volume: str) -> None:
    for name in ("a", "b", "c"):
        run(volume, name)
    runs, asked = live(volume, limits=replace(NOW, most_remembered=2))
    for name in ("a", "b", "a", "c"):
        read(runs, name)
    asked.asked.clear()
    read(runs, "a")
    assert "a/run.json" not in asked.asked, "it is remembered"
    read(runs, "b")
    assert "b/run.json" in asked.asked, "it was looked at longest ago"


def test_a_reading_that_takes_long_is_no_silent_store_and_a_request_that_does_is_one() -> None:
    """No time at all may pass in a request, and reading goes on for ever."""
    limits = PageLimits(patience_seconds=0.05, silent_seconds=0.0)
    begun, over = threading.Event(), threading.Event()

    def reading(requests: Requests) -> int:
        with requests.one():
            pass
        begun.set()
        over.wait(60)
        return 1

    def silent(requests: Requests) -> int:
        with requests.one():
            return reading(requests=Requests())

    for read_, said in ((reading, None), (silent, "the store has not answered for 0 s")):
        begun.clear()
        watched = Watched(read_, "x", limits)
        watched.now()
        assert begun.wait(60)
        problem = watched.now().problem
        assert problem is None if said is None else said in str(problem)
    over.set()


def test_what_took_long_to_read_rests_longer(volume: str) -> None:
    looked: list[int] = []
    watched = Watched(lambda _: looked.append(1), "x", replace(NOW, rest=1e9))
    watched.now()
    watched.now()
    assert len(looked) == 1
