"""The standard streams of a process, and its end."""

import os
import subprocess
import sys

import pytest

from tests.support.repository import ROOT

# A child that ignores SIGTERM, as a process that loads data does, and a thread that never ends.
_STUCK = """
import multiprocessing, signal, sys, threading
from app.process import end_process
def ignore(ready):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.set()
    threading.Event().wait()
if __name__ == "__main__":
    ready = multiprocessing.Event()
    multiprocessing.Process(target=ignore, args=(ready,), daemon=True).start()
    threading.Thread(target=threading.Event().wait).start()
    ready.wait()
    print("all that was printed", end="")
    end_process(75)
"""


def ended(command: str) -> subprocess.CompletedProcess[bytes]:
    """A shell's command with this Python as $PY, in the root of the project."""
    return subprocess.run(
        ["sh", "-c", command],
        cwd=ROOT,
        env={**os.environ, "PY": sys.executable, "STUCK": _STUCK},
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_a_process_ends_with_its_code_whatever_thread_or_child_is_left() -> None:
    done = ended('exec "$PY" -c "$STUCK"')
    assert (done.returncode, done.stdout) == (75, b"all that was printed"), done.stderr


@pytest.mark.parametrize("command", ["config", "config --markdown"])
def test_output_that_nothing_takes_is_a_failure_with_one_line(command: str) -> None:
    done = ended(f'exec "$PY" -m app {command} >/dev/full')
    assert done.returncode == 75
    assert done.stderr.count(b"\n") == 1 and b"the standard output is full" in done.stderr


def test_a_reader_who_has_seen_enough_is_no_failure() -> None:
    done = ended('{ "$PY" -m app config; echo "exit $?" >&2; } | true')
    assert done.stderr == b"exit 0\n"


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_streams_that_are_closed_or_full_change_no_exit_code(closed: str) -> None:
    assert ended(f'exec "$PY" -m app config {closed}').returncode == 0
    assert ended(f'exec "$PY" -m app train --total_steps none {closed}').returncode == 78


@pytest.mark.parametrize(("status", "code"), [("3", 3), ("0", 0), ("", 0), ("'text'", 1)])
def test_a_process_that_something_in_it_ends_has_the_code_that_was_given(
    status: str, code: int
) -> None:
    text = (
        "import runpy; from unittest import mock;"
        f"mock.patch('app.cli.parser.main', side_effect=SystemExit({status})).start();"
        "runpy.run_module('app', run_name='__main__')"
    )
    assert ended(f'exec "$PY" -c "{text}"').returncode == code


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_character_that_the_output_does_not_have_is_replaced(encoding: str) -> None:
    text = (
        "from app.process import end_process, keep_standard_streams;"
        "keep_standard_streams(); print('\\u2588 done'); end_process(0)"
    )
    done = ended(f'PYTHONIOENCODING={encoding} exec "$PY" -c "{text}"')
    assert (done.returncode, done.stdout) == (0, b"? done\n"), done.stderr
