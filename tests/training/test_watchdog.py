"""The thread that ends a process which hangs."""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from unittest.mock import Mock

import pytest

from app.errors import Unavailable
from app.heartbeat import beat, beats_so_far
from app.settings.variables import CheckpointSettings
from app.training.checkpointing import Checkpointing
from app.training.preemption import GracePeriod, StopRequest
from app.training.watchdog import Verdict, Watch, watched_for_hangs
from tests.support.quiet_stop import QuietStop
from tests.support.repository import ROOT

SETTINGS = CheckpointSettings(hang_seconds=100, grace_seconds=20)

# A call of C by way of PyDLL keeps the lock.
WITH_THE_LOCK = """
import ctypes
from app.settings.variables import CheckpointSettings
from app.training.preemption import StopRequest
from app.training.watchdog import watched_for_hangs
def hang():
    ctypes.PyDLL(None).sleep(600)
with watched_for_hangs(CheckpointSettings(), StopRequest(), last_resort_seconds=0.5):
    hang()
"""


class Told(logging.Handler):
    """A handler that calls a function for each line."""

    def __init__(self, tell: Callable[[], None]) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell()


def silent_process(end: Callable[[int], None]) -> AbstractContextManager[None]:
    """A watched block that shows no sign of life."""
    settings = CheckpointSettings.model_construct(hang_seconds=0.02, grace_seconds=20.0)
    return watched_for_hangs(
        settings, QuietStop(), poll_seconds=0.01, end=end, last_resort_seconds=3600
    )


def looks(watch: Watch, *, asked: bool = False, stepped: bool = True) -> Callable[..., int | None]:
    def look(seconds: float, beats: int, asked: bool = asked, allowed: float = 900) -> int | None:
        verdict = watch.look(seconds, beats, asked=asked, stepped=stepped, allowed=allowed)
        return verdict.code if verdict else None

    return look


def test_silence_counts_from_the_last_sign_of_life() -> None:
    look = looks(Watch(SETTINGS))
    assert [look(1, 7), look(99, 7), look(99, 8), look(99, 8), look(1, 8)] == [*[None] * 4, 75]


def test_the_first_step_may_take_four_times_as_long() -> None:
    look = looks(Watch(SETTINGS), stepped=False)
    assert [look(0, 1), look(399, 1), look(1, 1)] == [None, None, 75]


def test_the_verdict_names_the_variable_and_says_what_to_do() -> None:
    watch = Watch(SETTINGS)
    watch.look(0, 1, asked=False, stepped=True)
    verdict = watch.look(100, 1, asked=False, stepped=True)
    assert isinstance(verdict, Verdict)
    assert "HANG_SECONDS=100" in verdict.why and "start again" in verdict.why


def test_once_it_is_asked_to_stop_signs_of_life_prolong_nothing() -> None:
    look = looks(Watch(SETTINGS), asked=True)
    assert [look(10, 1), look(9, 2), look(1, 3)] == [None, None, 143]


@pytest.mark.parametrize(("silent", "code"), [(301, 75), (299, 143)])
def test_a_hang_that_the_liveness_probe_ends_is_counted_and_a_preemption_is_not(
    silent: float, code: int
) -> None:
    """The probe asks to stop long before HANG_SECONDS are over; grace is 20 s."""
    look = looks(Watch(CheckpointSettings(hang_seconds=1800, grace_seconds=20)))
    assert [look(0, 7), look(silent, 7, allowed=300)] == [None, None]
    asked = [look(0, 7, True, 300), look(19, 7, True, 300), look(1, 7, True, 300)]
    assert asked == [None, None, code]


def test_who_shows_life_again_after_it_was_asked_to_stop_is_preempted_and_did_not_hang() -> None:
    look = looks(Watch(CheckpointSettings(hang_seconds=1800, grace_seconds=20)))
    assert [look(0, 7), look(400, 7, allowed=300)] == [None, None]
    assert [look(0, 7, True, 300), look(10, 8, True, 300), look(10, 8, True, 300)] == [
        None,
        None,
        143,
    ]


def test_a_grace_of_no_time_leaves_a_healthy_process_the_seconds_of_its_end() -> None:
    look = looks(Watch(CheckpointSettings(grace_seconds=0.01)), asked=True)
    assert [look(4, 1), look(1, 2)] == [None, 143]


@pytest.mark.usefixtures("own_handlers")
def test_a_silent_process_is_ended_from_another_thread_with_the_stacks_of_all(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    codes, ended = [], threading.Event()

    def end(code: int) -> None:
        codes.append((code, threading.current_thread() is threading.main_thread()))
        ended.set()

    with silent_process(end):
        ended.wait()
    assert codes == [(75, False)]
    assert "it hangs" in caplog.text
    assert "test_watchdog.py" in capfd.readouterr().err


@pytest.mark.usefixtures("own_handlers")
def test_the_stacks_are_out_before_the_line_whose_handler_may_be_stuck(
    capfd: pytest.CaptureFixture[str],
) -> None:
    before_the_line: list[str] = []
    handler = Told(lambda: before_the_line.append(capfd.readouterr().err))
    ended = threading.Event()
    logging.getLogger("app").addHandler(handler)
    with silent_process(lambda code: ended.set()):
        ended.wait()
    logging.getLogger("app").removeHandler(handler)
    assert "test_watchdog.py" in before_the_line[0]


@pytest.mark.usefixtures("own_handlers")
def test_a_process_that_can_make_no_thread_is_ended_and_says_why(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = threading.Thread.start

    def start(self: threading.Thread) -> None:
        if self.name == "last words":
            raise RuntimeError("can't start new thread")
        original(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    codes, ended = [], threading.Event()

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    with silent_process(end):
        ended.wait()
    said = capfd.readouterr().err
    assert codes == [75]
    assert "it hangs" in said and "can't start new thread" in said and "test_watchdog.py" in said


def test_code_that_hangs_with_the_lock_of_the_interpreter_is_ended_by_the_last_resort() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITH_THE_LOCK],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert b"Timeout" in done.stderr and b"in hang" in done.stderr, done.stderr


@pytest.mark.usefixtures("own_handlers")
def test_each_look_puts_the_last_resort_off_and_the_end_of_the_block_takes_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds: list[float] = []
    often, cancel = threading.Event(), Mock()

    def later(timeout: float, **_: object) -> None:
        seconds.append(timeout)
        if len(seconds) == 2:
            raise RuntimeError("unable to start watchdog thread")
        if len(seconds) > 3:
            often.set()

    monkeypatch.setattr("faulthandler.dump_traceback_later", later)
    monkeypatch.setattr("faulthandler.cancel_dump_traceback_later", cancel)
    with watched_for_hangs(SETTINGS, QuietStop(), poll_seconds=0.01):
        often.wait()
        assert cancel.call_count == 0
    assert set(seconds) == {1600.0}, "sixteen times HANG_SECONDS"
    assert cancel.call_count == 1


def test_who_waits_for_a_silent_store_is_ended_by_give_up_seconds_and_not_by_hang_seconds() -> None:
    watch = Watch(SETTINGS)
    verdicts: list[Verdict | None] = []

    class Silent:
        """A saver whose store does not answer; each look at it lasts as long as a short pause."""

        committed_step = None

        def wait(self, timeout: float) -> bool:
            verdicts.append(watch.look(30, beats_so_far(), asked=False, stepped=True))
            if 30 * len(verdicts) > 10 * SETTINGS.hang_seconds:
                raise Unavailable("no checkpoint could be saved (GIVE_UP_SECONDS=1000)")
            return False

    checkpointing = Mock(saver=Silent(), grace=GracePeriod(QuietStop(), 20))
    with pytest.raises(Unavailable, match="GIVE_UP_SECONDS"):
        Checkpointing.wait_for_commits(checkpointing, 5)
    assert set(verdicts) == {None} and len(verdicts) > 30


@pytest.mark.usefixtures("own_handlers")
def test_a_signal_is_heard_while_the_main_thread_hears_nothing() -> None:
    settings = CheckpointSettings.model_construct(hang_seconds=3600.0, grace_seconds=5.0)
    codes, ended = [], threading.Event()
    stop = StopRequest()
    signal.signal(signal.SIGTERM, lambda number, frame: None)

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    with watched_for_hangs(settings, stop, poll_seconds=0.01, end=end):
        os.kill(os.getpid(), signal.SIGTERM)
        ended.wait()
    assert not stop.requested and codes == [143]


@pytest.mark.usefixtures("own_handlers")
def test_a_block_that_ends_is_watched_no_longer() -> None:
    codes: list[int] = []
    settings = CheckpointSettings.model_construct(hang_seconds=3600.0, grace_seconds=5.0)
    with watched_for_hangs(settings, QuietStop(), end=codes.append):
        beat()
    assert signal.set_wakeup_fd(-1) == -1
    assert codes == [] and "watchdog" not in [thread.name for thread in threading.enumerate()]
