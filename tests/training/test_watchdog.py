"""The thread that ends a process which hangs."""

import os
import signal
import threading
from collections.abc import Callable

import pytest

from app.heartbeat import beat
from app.settings.variables import CheckpointSettings
from app.training.preemption import StopRequest
from app.training.watchdog import Verdict, Watch, watched_for_hangs
from tests.support.quiet_stop import QuietStop

SETTINGS = CheckpointSettings(hang_seconds=100, grace_seconds=20)


def looks(watch: Watch, *, asked: bool = False, stepped: bool = True) -> Callable[..., int | None]:
    def look(seconds: float, beats: int) -> int | None:
        verdict = watch.look(seconds, beats, asked=asked, stepped=stepped)
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


def test_a_grace_of_no_time_leaves_a_healthy_process_the_seconds_of_its_end() -> None:
    look = looks(Watch(CheckpointSettings(grace_seconds=0.01)), asked=True)
    assert [look(4, 1), look(1, 2)] == [None, 143]


@pytest.mark.usefixtures("own_handlers")
def test_a_silent_process_is_ended_from_another_thread_with_the_stacks_of_all(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    settings = CheckpointSettings.model_construct(hang_seconds=0.02, grace_seconds=20.0)
    codes, ended = [], threading.Event()

    def end(code: int) -> None:
        codes.append((code, threading.current_thread() is threading.main_thread()))
        ended.set()

    with watched_for_hangs(settings, QuietStop(), poll_seconds=0.01, end=end):
        ended.wait()
    assert codes == [(75, False)]
    assert "it hangs" in caplog.text
    assert "test_watchdog.py" in capfd.readouterr().err


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
