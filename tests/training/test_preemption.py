"""Signals: raised before training, remembered during it."""

import contextlib
import math
import os
import signal
import subprocess
import threading

import pytest

from app.errors import Preempted
from app.training.preemption import GracePeriod, Interrupted, StopRequest

pytestmark = pytest.mark.usefixtures("own_handlers")


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def test_before_training_a_signal_ends_the_process_where_it_strikes() -> None:
    stop = StopRequest()
    stop.install()
    with pytest.raises(Interrupted):
        send(signal.SIGTERM)
    assert not issubclass(Interrupted, Exception), "no library may swallow it"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_terminal_that_is_gone_and_a_batch_system_ask_to_stop_as_sigterm_does(
    number: signal.Signals,
) -> None:
    stop = StopRequest()
    stop.install()
    with pytest.raises(Interrupted):
        send(number)
    stop.taken()
    later = StopRequest()
    later.install()
    later.defer()
    send(number)
    assert later.requested


def test_a_job_that_was_started_by_nohup_goes_on_without_its_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopRequest()
    stop.install()
    send(signal.SIGHUP)
    assert not stop.requested


def test_an_interruption_that_got_lost_strikes_again_until_it_is_taken() -> None:
    stop = StopRequest(again_seconds=3600)
    stop.install()
    with contextlib.suppress(Interrupted):
        send(signal.SIGTERM)
    assert signal.getitimer(signal.ITIMER_REAL)[1] == 3600
    for _ in range(2):
        with pytest.raises(Interrupted):
            send(signal.SIGALRM)
    stop.taken()
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_one_that_got_lost_until_training_began_strikes_no_more() -> None:
    stop = StopRequest(again_seconds=3600)
    stop.install()
    with contextlib.suppress(Interrupted):
        send(signal.SIGTERM)
    with pytest.raises(Preempted):
        stop.defer()
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    send(signal.SIGALRM)  # one that was under way


def test_one_that_strikes_where_a_library_waits_for_its_child_does_not_wait() -> None:
    stop = StopRequest(again_seconds=1)
    stop.install()
    with pytest.raises(Interrupted), subprocess.Popen(["sleep", "60"]) as child:
        send(signal.SIGTERM)  # leaving the block waits
    stop.taken()
    child.kill()
    assert child.wait() == -signal.SIGKILL, "nobody waited for its end"


def test_during_training_it_only_sets_the_flag() -> None:
    stop = StopRequest()
    stop.install()
    stop.defer()
    assert stop.seconds_since() == 0
    send(signal.SIGTERM)
    assert stop.requested


def test_a_second_sigterm_does_not_start_the_clock_again() -> None:
    stop = StopRequest()
    stop.install()
    stop.defer()
    send(signal.SIGTERM)
    first = stop.requested_at
    send(signal.SIGTERM)
    assert stop.requested_at == first


def test_a_second_ctrl_c_is_taken_at_its_word() -> None:
    stop = StopRequest()
    stop.install()
    stop.defer()
    send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


def test_deferring_takes_the_signals_back_from_a_library() -> None:
    stop = StopRequest()
    stop.install()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stop.defer()
    send(signal.SIGTERM)
    assert stop.requested


class TickingTime:
    """A clock that goes on by `tick` seconds at each look, however busy the machine is."""

    def __init__(self, tick: float) -> None:
        self.now, self._tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self._tick
        return self.now


@pytest.mark.parametrize("seconds", [0.01, 2, 8, 25, 3600])
def test_a_silent_store_does_not_keep_closing_from_ending_within_the_grace(
    seconds: float,
) -> None:
    clock, silent = TickingTime(tick=min(seconds, 25) / 1000), threading.Event()
    stop = StopRequest(now=clock)
    period = GracePeriod(stop, seconds, poll_seconds=0.001)
    stop.requested_at = clock.now

    def wait_in_vain() -> None:
        silent.wait()

    while period.fits(0):  # saving is waited for, in vain
        pass
    assert clock.now >= 3 / 4 * seconds
    period.record_end(wait_in_vain)
    period.give_lease_back(wait_in_vain)
    silent.set()
    assert clock.now < seconds


def test_before_anybody_asks_to_stop_everything_fits() -> None:
    assert GracePeriod(StopRequest(), 1.0).fits(math.inf)
