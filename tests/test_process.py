"""The standard streams of a process, and its end."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator

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


# It prints the last word when its pipe is full.
_UNREAD = """
import os
from app.process import end_process
os.set_blocking(1, False)
try:
    while True:
        os.write(1, b"x" * 4096)
except BlockingIOError:
    os.set_blocking(1, True)
print("the last word", end="")
end_process(75, patience=0.1)
"""
_SLOWLY_READ = """
import sys
from app.process import end_process, keep_standard_streams
keep_standard_streams()
for number in range(900):
    print("x" * 100, file=sys.stderr)
end_process(0)
"""


def pieces_at_hand(descriptor: int) -> Iterator[bytes]:
    """What can be read now from a descriptor that does not wait."""
    try:
        while piece := os.read(descriptor, 65536):
            yield piece
    except BlockingIOError:
        return


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


# It writes until lines are lost, waits until its log is read, and then says one more line.
_LOUD = """
import logging, sys
from app.console import setup_logging
from app.process import end_process, keep_standard_streams
keep_standard_streams()
setup_logging("json")
log = logging.getLogger("app")
for number in range(1000):
    log.info("line %d %s", number, "x" * int(sys.argv[1]))
print("full", flush=True)
sys.stdin.read(1)
log.info("read again")
end_process(75)
"""


@pytest.mark.parametrize(("kind", "length"), [("pipe", 50), ("pipe", 9000), ("terminal", 50)])
def test_a_log_that_nobody_reads_holds_nothing_up_and_says_later_what_is_missing(
    kind: str, length: int
) -> None:
    reader, writer = os.pipe() if kind == "pipe" else pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", _LOUD, str(length)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=writer,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"full\n"
        os.set_blocking(reader, False)
        early = b"".join(pieces_at_hand(reader))
        process.communicate(b"1", timeout=60)
        late = b"".join(pieces_at_hand(reader))
    os.close(reader)
    os.close(writer)
    assert process.returncode == 75
    kept = early.count(b"\n")
    assert kept > 3 and all(json.loads(line) for line in early.splitlines()[:kept])
    gap, last = (json.loads(line)["message"] for line in late.splitlines()[-2:])
    assert gap.startswith(f"{1000 - kept} lines of the log lost") and last == "read again"


def test_a_log_that_is_read_again_within_a_second_loses_nothing() -> None:
    done = ended(f"\"$PY\" -c '{_SLOWLY_READ}' 2>&1 >/dev/null | {{ read first; cat | wc -l; }}")
    assert done.stdout.strip() == b"899"


def test_output_that_nobody_reads_does_not_hold_up_the_end() -> None:
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", _UNREAD],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        stdout=writer,
    )
    assert process.wait(timeout=60) == 75
    os.close(reader)
    os.close(writer)


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
