"""`report --serve`, as a process: it serves, says where, and ends when it is told to."""

import re
import signal
import socket
import urllib.request
from pathlib import Path

import pytest

from app.cli import parser as cli
from app.run.record import create_record
from app.stores.opening import open_store
from tests.support.job import JobRunner
from tests.support.stored_run import IDENTITY, commit_step


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal_comes(number: signal.Signals, tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/store"
    create_record(open_store(uri, "run"), "run", IDENTITY, 100)
    commit_step(open_store(uri, "run"), 3)
    process = JobRunner({"CHECKPOINT_URI": uri}).start("report", "--serve", "--port", "0")
    assert process.stdout is not None
    found = re.search(r"is at (http://127\.0\.0\.1:\d+/)$", line := process.stdout.readline())
    assert found, line
    with urllib.request.urlopen(found[1], timeout=60) as answer:
        assert ">committed</td>" in answer.read().decode()
    process.send_signal(number)
    assert process.wait() == 143
    assert process.stdout.read().splitlines()[-1].endswith("WARNING: stopped")


def test_a_port_that_is_taken_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        uri = f"file://{tmp_path}/store"
        assert cli.main(["report", "--serve", "--port", port, "--checkpoint_uri", uri]) == 78
    error = capsys.readouterr().err
    assert f"--port {port} (Address already in use)" in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--serve", "--to", "page.html"], "no meaning together"),
        (["--port", "80"], "only with --serve"),
        (["--host", "::1"], "only with --serve"),
        (["--serve", "--port", "65536"], "above 65,535"),
    ],
)
def test_flags_without_a_meaning_are_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", *words, "--checkpoint_uri", f"file://{tmp_path}/store"]) == 64
    assert said in capsys.readouterr().err
