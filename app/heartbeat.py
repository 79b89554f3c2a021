"""A sign of life: a file that the job touches, and whose age `health` judges.

A training job is healthy while it makes progress: micro-steps, saves, prepared
documents. An open port would prove less.
"""

import tempfile
import time
from functools import cache
from pathlib import Path

from app.errors import Unavailable

HEARTBEAT_FILE = "smollm2-heartbeat"
LONGEST_SILENCE = 900.0  # seconds; one 135M micro-step on a slow CPU stays far below


def heartbeat_path() -> Path:
    return Path(tempfile.gettempdir()) / HEARTBEAT_FILE


class Pulse:
    """How often this process has shown that it is alive."""

    beats = 0


@cache
def pulse() -> Pulse:
    """The one of this process."""
    return Pulse()


def beat() -> None:
    """Show that the job is alive."""
    pulse().beats += 1
    heartbeat_path().touch()


def check_heartbeat() -> str:
    """One line of good news. Raises Unavailable if the job is silent for too long."""
    try:
        age = time.time() - heartbeat_path().stat().st_mtime
    except FileNotFoundError as error:
        raise Unavailable(f"no sign of life: {heartbeat_path()} does not exist") from error
    if age > LONGEST_SILENCE:
        raise Unavailable(f"no sign of life for {age:.0f} s (allowed: {LONGEST_SILENCE:.0f} s)")
    return f"alive {age:.0f} s ago"
