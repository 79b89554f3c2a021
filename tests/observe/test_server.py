"""The served page: it follows its run, only reads, and answers nobody that it does not know."""

import http.client
import json
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import ConfigError, Unavailable
from app.observe.live import LiveRuns, PageLimits
from app.observe.report import Served, page
from app.observe.reported_run import ReportedRun
from app.observe.rows import encode_row
from app.observe.server import Address, PageServer, Shown
from app.run.journal import AttemptJournal
from app.run.layout import (
    LEASE,
    MANIFEST,
    METRICS_KEY,
    QUARANTINE,
    RECORD,
    SAMPLES_KEY,
    CheckpointName,
)
from app.run.lease import Doing, Lease
from app.run.record import create_record
from app.stores.contract import Store
from app.stores.opening import Place, open_place, open_store
from tests.support.rows import row
from tests.support.stored_run import IDENTITY, attempt_record, commit_step

NOW = PageLimits(fresh_seconds=0.0, list_seconds=0.0, rest=0.0, patience_seconds=30.0)
HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(2)>\u202e"


class Site:
    """A server of pages, as a browser on this machine talks to it."""

    def __init__(self, server: PageServer) -> None:
        self.server, self.port = server, server.server_port

    def ask(
        self, path: str, method: str = "GET", host: str | None = None
    ) -> tuple[int, dict[str, str], str]:
        """Status, headers and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", host or f"127.0.0.1:{self.port}")
        connection.endheaders()
        answer = connection.getresponse()
        found = answer.status, dict(answer.getheaders()), answer.read().decode()
        connection.close()
        return found

    def page(self, path: str = "/") -> str:
        return self.ask(path)[2]


@contextmanager
def site(
    uri: str,
    limits: PageLimits = NOW,
    opening: Callable[[str], Place] = open_place,
    home: str | None = None,
) -> Iterator[Site]:
    runs = LiveRuns(lambda: opening(uri), uri, limits)
    server = PageServer(Address("127.0.0.1", 0, "--port 0"), Shown(runs, uri, home))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield Site(server)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(params=["volume", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """CHECKPOINT_URI of each kind, with nothing in it."""
    if request.param == "volume":
        return f"file://{tmp_path}/store"
    return f"s3://{request.getfixturevalue('bucket')}/some/prefix"


@pytest.fixture
def volume(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


def begun(uri: str, name: str = "run") -> Store:
    """A run with a record, rows, a sample, an attempt and a checkpoint."""
    store = open_store(uri, name)
    create_record(store, name, IDENTITY, 100)
    store.put(METRICS_KEY, [encode_row(row(1)), encode_row(row(2))])
    store.put(SAMPLES_KEY, [b'{"step": 2, "attempt": 1, "time": 1.0, "text": "Once upon"}\n'])
    AttemptJournal(store, attempt_record()).begin()
    commit_step(store, 2)
    return store


def held(store: Store, doing: Doing) -> Lease:
    lease = Lease(store, 30.0, "host:1:abc")
    lease.tells = lambda: doing
    lease.acquire(0.0, lambda line: None, lambda: False)
    return lease


def test_the_page_follows_the_run(uri: str) -> None:
    with site(uri) as served:
        assert "no run yet" in served.page()
        store = begun(uri)
        assert "not started yet" in served.page()
        lease = held(store, Doing("training, saving step 20", 21))
        found = served.page()
        assert "training, saving step 20: step 21 of 100" in found and "Once upon" in found
        assert ">committed</td>" in found
        store.put(CheckpointName(20, lease.epoch).key("model.safetensors"), [b"half"])
        assert ">being saved</td>" in served.page()
        lease.tells = lambda: Doing("training", 25)
        lease.renew()
        assert "training: step 25 of 100" in served.page()
        journal = AttemptJournal(store, attempt_record())
        journal.note(step=30)
        assert journal.end("exit 143: stopped at step 30")
        lease.release()
        found = served.page()
        assert ">unfinished upload</td>" in found
        assert "stopped at step 30" in found and "exit 143: stopped at step 30" in found


def test_several_runs_are_listed_and_lead_to_each_other(uri: str) -> None:
    journal = AttemptJournal(begun(uri, "first"), attempt_record())
    journal.note(step=30)
    assert journal.end("exit 143: asked to")
    held(begun(uri, "second"), Doing("training", 7))
    open_store(uri, "_tokens").put("x/index.json", [b"{}"])
    with site(uri) as served:
        found = served.page()
        assert 'href="/runs/first"' in found and 'href="/runs/second"' in found
        assert "training: step 7" in found and "_tokens" not in found
        assert "stopped at step 30" in found
        second = served.page("/runs/second")
        assert 'href="/runs/first"' in second and 'href="/runs/second" aria-current' in second
        assert served.ask("/runs/third")[0] == 404


def test_a_run_that_is_at_home_is_shown_before_the_list(volume: str) -> None:
    begun(volume, "first")
    with site(volume, home="second") as served:
        begun(volume, "second")
        found = served.page()
        assert 'href="/runs/second" aria-current' in found and 'href="/runs/first"' in found
        assert "<h1>Runs</h1>" in served.page("/runs/")


def test_the_reader_from_outside_says_that_it_serves_and_who_has_the_metrics(volume: str) -> None:
    with site(volume) as served:
        status, _, said = served.ask("/healthz", host="some-service:8080")
        assert (status, said) == (200, "serving\n")
        status, _, said = served.ask("/metrics")
        assert status == 404 and "METRICS_PORT" in said


def test_each_of_many_runs_has_its_page_also_those_that_the_list_has_no_room_for(
    volume: str,
) -> None:
    names = [f"run{number:03d}" for number in range(120)]
    for name in names:
        create_record(open_store(volume, name), name, IDENTITY, 100)
    with site(volume) as served:
        found = served.page("/runs/")
        assert "The newest 100 of 120 runs" in found and "/runs/run119" not in found
        for name in (names[0], names[-1]):
            assert f"<h1>{name}</h1>" in served.page(f"/runs/{name}")
        assert served.ask("/runs/run120")[0] == 404


def test_a_run_that_is_asked_for_first_leads_to_the_others(volume: str) -> None:
    begun(volume, "one")
    begun(volume, "two")
    with site(volume) as served:
        assert 'href="/runs/two"' in served.page("/runs/one")


def test_a_damaged_run_is_shown_with_what_is_wrong(uri: str) -> None:
    store = begun(uri)
    store.put(CheckpointName(2, 1).key(MANIFEST), [b"{"])
    store.put(RECORD, [b"no json"])
    store.put(LEASE, [b'{"holder": 3}'])
    store.put(METRICS_KEY, [encode_row(row(1)), b"\xff\xfe not a row\n", encode_row(row(3))])
    store.put(SAMPLES_KEY, [b"[]\n", b'{"step": 3, "attempt": 1, "time": 1.0, "text": "good"}\n'])
    with site(uri) as served:
        found = served.page()
        assert "run.json is damaged" in found and "lease.json is damaged" in found
        assert "damaged: checkpoints/step-0000000002-e000001/manifest.json" in found
        assert "train loss" in found and "good" in found


def test_nothing_from_the_store_becomes_markup(volume: str) -> None:
    store = begun(volume)
    create = IDENTITY.model_copy(update={"model": HOSTILE, "dataset": HOSTILE})
    store.delete([RECORD])
    create_record(store, "run", create, 100)
    store.put(
        SAMPLES_KEY,
        [json.dumps({"step": 2, "attempt": 1, "time": 1.0, "text": HOSTILE}).encode() + b"\n"],
    )
    ended = attempt_record().model_copy(update={"ended": HOSTILE, "holder": HOSTILE})
    AttemptJournal(store, ended).begin()
    gone = CheckpointName(1, 1)
    store.put(gone.quarantine_key("reason.json"), [json.dumps({"reason": HOSTILE}).encode()])
    lease = Lease(store, 30.0, HOSTILE)
    lease.tells = lambda: Doing(HOSTILE, 3)
    lease.acquire(0.0, lambda line: None, lambda: False, above=1)
    with site(volume) as served:
        found = served.page()
        assert "alert(1)" in found and QUARANTINE[:-1] in found
        assert found.count("<script") == 1 and "<img" not in found and "\u202e" not in found


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:8080", " ", "a b", "[::1"]
)
def test_a_name_that_is_not_the_servers_is_refused(host: str, volume: str) -> None:
    begun(volume)
    with site(volume) as served:
        status, _, body = served.ask("/", host=host)
        assert status == 421 and "run" not in body.split("\n")[1]


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1", "[::1]:8080", "192.168.7.4:8080"])
def test_a_name_that_no_foreign_site_can_have_is_answered(host: str, volume: str) -> None:
    with site(volume) as served:
        assert served.ask("/", host=host)[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_only_reading_is_answered(method: str, volume: str) -> None:
    with site(volume) as served:
        assert served.ask("/", method)[0] == 501


def test_head_is_get_without_a_body(volume: str) -> None:
    begun(volume)
    with site(volume) as served:
        (code, headers, body), (_, also, found) = served.ask("/", "HEAD"), served.ask("/")
        assert (code, body) == (200, "")
        assert abs(int(headers["Content-Length"]) - len(found.encode())) < 100
        assert headers["Content-Security-Policy"] == also["Content-Security-Policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/runs/../secret",
        "/runs/%2e%2e",
        "/runs/..%2fsecret",
        "/runs/run%2f..%2f..%2fsecret",
        "//etc/passwd",
        "/runs/%00",
        "/report.css",
        "/runs/run/lease.json",
    ],
)
def test_a_path_leads_to_runs_alone(path: str, volume: str, tmp_path: Path) -> None:
    begun(volume)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / RECORD).write_text("secret")
    with site(volume) as served:
        assert served.ask(path)[0] == 404


def test_a_page_runs_its_own_script_and_loads_nothing_else(volume: str) -> None:
    begun(volume)
    with site(volume) as served:
        _, headers, found = served.ask("/")
        assert "script-src 'self'" in headers["Content-Security-Policy"]
        assert "unsafe-inline'; script" in headers["Content-Security-Policy"]
        for word in ("http:", "https:", "url(", "@import", "javascript:", "<link", "<style>@"):
            assert word not in found, word
        code, kind, script = served.ask("/live.js")
        assert code == 200 and kind["Content-Type"].startswith("text/javascript")
        assert "innerHTML" not in script and "eval" not in script


def test_a_store_that_can_only_be_read_is_enough(volume: str, tmp_path: Path) -> None:
    begun(volume)
    places = [tmp_path / "store", *(tmp_path / "store").rglob("*")]
    for place in places:
        place.chmod(stat.S_IMODE(place.stat().st_mode) & ~0o222)
    before = {p: p.stat().st_mtime_ns for p in places}
    try:
        with site(volume) as served:
            assert ">committed</td>" in served.page()
        assert before == {
            p: p.stat().st_mtime_ns for p in [tmp_path / "store", *(tmp_path / "store").rglob("*")]
        }
    finally:
        for place in places:
            place.chmod(stat.S_IMODE(place.stat().st_mode) | 0o200)


def test_a_store_that_goes_away_is_said_and_asked_again(volume: str) -> None:
    begun(volume)
    down: list[bool] = []

    class Mortal:
        def __init__(self, place: Place) -> None:
            self._place = place

        def __getattr__(self, name: str) -> object:
            if down:
                raise Unavailable("s3://x does not answer")
            return getattr(self._place, name)

    with site(volume, opening=lambda uri: Mortal(open_place(uri))) as served:  # type: ignore[arg-type,return-value]
        assert "does not answer" not in served.page()
        down.append(True)
        found = served.page()
        assert "cannot be read now, and is tried again" in found and "train loss" in found
        down.clear()
        assert "does not answer" not in served.page()


def test_a_bug_in_the_page_of_one_run_is_said_on_it_and_hides_no_other(
    volume: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def made(run: ReportedRun, served: Served) -> str:
        if run.name == "bad":
            raise ValueError("nobody thought of this")
        return page(run, served)

    begun(volume, "bad")
    begun(volume, "good")
    monkeypatch.setattr("app.observe.server.page", made)
    with site(volume) as served:
        assert "a bug of this page" in served.page("/runs/bad")
        assert "Once upon" in served.page("/runs/good")
    assert "nobody thought of this" in caplog.text


def test_a_silent_store_holds_no_page_up(volume: str) -> None:
    begun(volume)
    answers = threading.Event()

    def opening(uri: str) -> Place:
        answers.wait(60)
        return open_place(uri)

    with site(volume, replace(NOW, patience_seconds=0.05), opening) as served:
        assert "reading file://" in served.page()
        answers.set()


def test_what_is_fresh_is_not_read_again(volume: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(volume)
    limits = PageLimits(fresh_seconds=1e6, list_seconds=1e6, patience_seconds=30.0)
    with site(volume, limits) as served:
        first = served.page()
        open_store(volume, "run").put(METRICS_KEY, [encode_row(row(9))])
        assert served.page() == first


def test_a_port_that_is_taken_is_said(volume: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        shown = Shown(LiveRuns(lambda: open_place(volume), volume, NOW), volume)
        with pytest.raises(ConfigError, match=rf"--port {port} \(Address already in use\)"):
            PageServer(Address("127.0.0.1", port, f"--port {port}"), shown)
