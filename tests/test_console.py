"""What reaches the log, and what does not."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.console import JsonFormatter, TextFormatter, redacted


def record(message: str, failure: BaseException | None = None) -> logging.LogRecord:
    trace = (type(failure), failure, failure.__traceback__) if failure else None
    return logging.LogRecord("app", logging.ERROR, "", 1, "%s", (message,), trace)


FORGED = "half\n12:00:00 target reached\x1b[1A"


def test_nothing_that_is_quoted_begins_a_line_of_its_own_or_commands_the_terminal() -> None:
    line = TextFormatter().format(record(FORGED))
    assert line.endswith(r" ERROR: half\n12:00:00 target reached\x1b[1A")


def test_a_traceback_has_its_lines_and_none_of_them_looks_like_one_of_the_log() -> None:
    try:
        raise RuntimeError(FORGED)
    except RuntimeError as error:
        first, *rest = TextFormatter().format(record("a bug", error)).split("\n")
    assert first.endswith("ERROR: a bug")
    assert rest[0] == "  Traceback (most recent call last):" and len(rest) > 3
    assert all(line.startswith("  ") and "\x1b" not in line for line in rest)


def test_a_line_of_json_stays_one_line() -> None:
    line = JsonFormatter().format(record(FORGED))
    assert "\n" not in line and "\x1b" not in line
    assert json.loads(line)["message"] == FORGED


WARNS_OFTEN = """
import logging, sys
from app.console import setup_logging
from app.process import keep_standard_streams
keep_standard_streams()
setup_logging("text", rank=int(sys.argv[1]))
for number in range(300):
    try:
        raise RuntimeError("why")
    except RuntimeError:
        logging.getLogger("app").warning("number %d", number, exc_info=True)
"""


def test_what_two_processes_warn_of_at_once_stays_apart_and_says_whose_it_is() -> None:
    reader, writer = os.pipe()
    command = [sys.executable, "-c", WARNS_OFTEN]
    root = Path(__file__).parents[1]
    warners = [subprocess.Popen([*command, str(rank)], stderr=writer, cwd=root) for rank in (0, 3)]
    os.close(writer)
    with os.fdopen(reader) as pipe:
        lines = pipe.read().splitlines()
    assert [warner.wait() for warner in warners] == [0, 0]
    warnings = [line.partition(" WARNING: ")[2] for line in lines[::4]]
    assert sorted(warnings) == sorted(
        f"{whose}number {number}" for whose in ("", "[rank 3] ") for number in range(300)
    )
    traces = {tuple(lines[at + 1 : at + 4]) for at in range(0, len(lines), 4)}
    assert len(traces) == 1 and "Traceback" in lines[1]


@pytest.mark.parametrize(
    "url",
    [
        "http://user:SECRET@host/path",
        "http://user:p/SECRET@host",
        "http://user:12/SECRET@host:9000/x",
        "http://user:a@SECRET@host",
        "http://user:a//b/SECRET@host",
        "http://user:?SECRET#SECRET@host",
        "http://SECRET@host",
        "http://host/x?X-Amz-Signature=SECRET&a=SECRET",
        "IQoJb3JpZ2luSECRET+/==",
        "FwoGZXIvYXdzSECRET",
    ],
)
def test_no_password_and_no_tail_of_one_is_shown(url: str) -> None:
    assert "SECRET" not in redacted(f"cannot reach {url}, see 'http://host/a@b'")


@pytest.mark.parametrize(
    "text",
    [
        "http://host:9000/a/b and user@host",
        "https://hub.co/org/model@main/file",
        "s3://bucket/a@b:0.5",
        "file:///data/a:b@c",
        "s3://a/x:0.7,s3://b/y@z:0.3",
        "http://[::1]:9000/x",
        "http://host:9000/bucket?list-type=2&prefix=a%2Fb&max-keys=1",
    ],
)
def test_what_is_no_password_is_shown(text: str) -> None:
    assert redacted(text) == text
