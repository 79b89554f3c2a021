"""The page in a real browser: it changes by itself when a run is killed, and fits every window."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.observe.activity import activity_of
from app.observe.live import LiveRuns, PageLimits, Seen
from app.observe.reported_run import ReportedRun
from app.observe.server import Address, PageServer, Shown
from app.stores.opening import open_place
from tests.support import browser
from tests.support.job import JobProcess, JobRunner

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.browser() is None, reason="no chromium here: no page was looked at"),
]
NOW = PageLimits(fresh_seconds=0.0, list_seconds=0.0, rest=0.0, patience_seconds=60.0)


class KilledWhenSeen(LiveRuns):
    """Kills the job when a page that is open looks again, and answers when the run is silent."""

    def __init__(self, uri: str, job: JobProcess) -> None:
        super().__init__(lambda: open_place(uri), uri, NOW)
        self._job, self.kinds = job, list[str]()

    def run(self, name: str) -> Seen[ReportedRun]:
        seen = self._found(name)
        if len(self.kinds) == 1:
            self._job.kill()
            self._job.wait()
            while seen.value is not None and activity_of(seen.value).kind != "silent":
                threading.Event().wait(0.2)
                seen = self._found(name)
        assert seen.value is not None
        self.kinds.append(activity_of(seen.value).kind)
        return seen

    def _found(self, name: str) -> Seen[ReportedRun]:
        seen = super().run(name)
        assert seen is not None
        return seen


@contextmanager
def served(runs: LiveRuns, uri: str) -> Iterator[str]:
    server = PageServer(Address("127.0.0.1", 0, "--port 0"), Shown(runs, uri))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server.url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_page_that_is_open_says_that_its_run_was_killed(
    job_environment: dict[str, str], tmp_path: Path
) -> None:
    uri = f"file://{tmp_path}/store"
    job = JobRunner(
        {**job_environment, "CHECKPOINT_URI": uri, "LEASE_TTL": "2", "TOTAL_STEPS": "1000000"}
    ).start("train")
    try:
        assert job.stdout is not None
        assert next((line for line in job.stdout if "checkpoint step " in line), None)
        threading.Thread(target=job.stdout.read, daemon=True).start()
        runs = KilledWhenSeen(uri, job)
        with served(runs, uri) as url:
            found = browser.dom(url, virtual_ms=10_000)
    finally:
        job.kill()
        job.wait()
    assert runs.kinds[:2] == ["running", "silent"]
    assert "silent since" in found and "was killed" in found


def test_no_page_is_wider_than_its_window(job_environment: dict[str, str], tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/store"
    job = JobRunner({**job_environment, "CHECKPOINT_URI": uri, "TOTAL_STEPS": "4"})
    assert job.run("train").code == 0
    with served(LiveRuns(lambda: open_place(uri), uri, NOW), uri) as url:
        content = browser.dom(url)
    assert "finished at step 4" in content
    whole = content.replace("&", "&amp;").replace('"', "&quot;")
    frames = "".join(
        f"<iframe style='border:0;width:{width}px;height:900px' srcdoc=\"{whole}\"></iframe>"
        for width in (375, 1_280)
    )
    script = (
        "addEventListener('load', () => { document.title = [...document.querySelectorAll('iframe')]"
        ".map((frame) => frame.contentDocument.documentElement.scrollWidth).join(' and '); });"
    )
    file = tmp_path / "frames.html"
    file.write_text(f"<script>{script}</script>{frames}", "utf-8")
    assert "<title>375 and 1280</title>" in browser.dom(file.as_uri())
