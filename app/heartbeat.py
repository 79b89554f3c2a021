"""A sign of life: a file that the job touches, and whose age `health` judges.

A training job is healthy while it makes progress: micro-steps, saves, prepared
documents. An open port would prove less. How old it may be is written in the file, since only
the job knows how long its steps are, and whether it compiles.

The file lies in the folder for temporary files, which all users share. So its name says the user
and the run, and only a plain file of this user is ever touched or believed: not one that another
user made under that name, and not what a link there leads to.
"""

import hashlib
import logging
import os
import stat
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from app.errors import Unavailable

log = logging.getLogger(__name__)

# How long a job may be silent, in seconds. Until it says something else, and at most but for
# compiling: one 135M micro-step on a slow CPU stays far below.
LONGEST_SILENCE = 900.0
COMPILING = 1800.0  # the first step of a compiled model is one long silence
SHORTEST_ALLOWANCE = 300.0  # an evaluation is compiled too, and a disk can be slow
_STEPS = 20  # so many times a step may pass in silence


@dataclass
class _Beats:
    """Where this process shows that it is alive, if anywhere."""

    path: Path | None = None
    complained: bool = False
    count: int = 0
    allowed: float = LONGEST_SILENCE


@cache
def _beats_of_this_process() -> _Beats:
    """One for the process: a sign of life is the whole process's, whichever part of it moves."""
    return _Beats()


def heartbeat_path(run: str) -> Path:
    """The file of this user and `run` (see `Settings.run_place`). Raises OSError where there is
    no folder for temporary files that can be written to."""
    digest = hashlib.sha256(run.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"smollm2-heartbeat-{os.geteuid()}-{digest}"


def show_life_of(run: str) -> None:
    """From here on `beat` shows that this process, which works on `run`, is alive."""
    beats = _beats_of_this_process()
    beats.path, beats.complained = None, False
    try:
        beats.path = heartbeat_path(run)
    except OSError as error:
        _complain("the folder for temporary files", error)
    _allow(LONGEST_SILENCE)


def compiling_begins() -> None:
    """What comes now may be silent for long."""
    _allow(COMPILING)


def steps_take(seconds: float) -> None:
    """From here on the job is silent for too long after 20 steps of `seconds` each."""
    _allow(min(LONGEST_SILENCE, max(SHORTEST_ALLOWANCE, _STEPS * seconds)))


def _allow(seconds: float) -> None:
    """Write down how old the sign of life may become from here on."""
    _beats_of_this_process().allowed = seconds
    _touch(f"{seconds:.0f}\n".encode())


def beats_so_far() -> int:
    """How often this process has shown that it is alive."""
    return _beats_of_this_process().count


def allowed_silence() -> float:
    """For how many seconds this process may be silent at present until `health` calls it dead."""
    return _beats_of_this_process().allowed


def beat() -> None:
    """Show that the job is alive, if it has said of which run. Any thread may call this.

    A sign that cannot be given is no reason to end: it is said once.
    """
    _touch()


def _touch(content: bytes = b"") -> None:
    """Make the sign of life new, and `content` what it says, if it is given."""
    beats = _beats_of_this_process()
    beats.count += 1
    path = beats.path
    if path is None:
        return
    try:
        # A pipe that somebody put there would hold up whoever opens it, without O_NONBLOCK.
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        try:
            _check_own_file(os.fstat(descriptor))
            if content:
                os.pwrite(descriptor, content, 0)
                os.ftruncate(descriptor, len(content))
            os.utime(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        _complain(str(path), error)


def check_heartbeat(run: str) -> str:
    """One line of good news of `run`. Raises Unavailable if the job is silent for too long."""
    try:
        path = heartbeat_path(run)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            _check_own_file(status)
            said = os.read(descriptor, 100)
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise Unavailable(
            f"no sign of life of {run} ({error.filename or error.strerror or error}): it does not "
            "run here, or was started with flags, which `health` has to be given too"
        ) from error
    except OSError as error:
        raise Unavailable(f"no sign of life of {run}: {path} ({error.strerror})") from error
    age = time.time() - status.st_mtime
    allowed = float(said) if said.strip().isdigit() else LONGEST_SILENCE
    if age > allowed:
        raise Unavailable(f"no sign of life of {run} for {age:.0f} s (allowed: {allowed:.0f} s)")
    return f"alive {age:.0f} s ago"


def _check_own_file(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        raise PermissionError(0, "it is not a file of this user")


def _complain(place: str, error: OSError) -> None:
    beats = _beats_of_this_process()
    if not beats.complained:
        beats.complained = True
        log.warning(
            "%s cannot be written (%s): the work goes on, but `health` will call it silent. Name "
            "another folder in TMPDIR",
            place,
            error.strerror or error,
        )
