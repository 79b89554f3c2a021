"""Several processes are disturbed at every point of their way: while they load their libraries,
find each other, make the first step, evaluate, save.

Each test waits for a line of the log, or holds a process in a function: no clock decides. Some
pairs of point and deed are tried here; with PROCESS_KILLS=60 each one, with both trainers.
"""

import itertools
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.hooked_workers import waiting_at
from tests.support.job import Action, JobRunner, Outcome, outcome
from tests.support.process_runs import (
    Disturbance,
    in_bucket,
    job,
    newest_step,
    steps_in,
    store_of,
    undisturbed,
    variables_of_run,
)

__all__ = ["job", "undisturbed", "variables_of_run"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LONG = int(os.environ.get("PROCESS_KILLS", "2")) >= 60
STORES = ("local", "s3") if LONG else ("local",)


@dataclass(frozen=True)
class Point:
    """A line of the log; or with `rank`, that call of the function `at` in that process.

    `joined`: the processes know of each other there; and those of `ranks` have been started.
    """

    at: str
    rank: int | None = None
    occurrence: int = 1
    joined: bool = True
    ranks: tuple[int, ...] = (0, 1, 2)

    def disturbed(
        self, job: JobRunner, folder: Path, act: Action
    ) -> tuple[JobRunner, dict[str, Action]]:
        if self.rank is None:
            return job, {self.at: act}
        return waiting_at(job, self.rank, self.at, self.occurrence, folder, act)


POINTS = {
    "at import": Point("processes train this run on this machine", joined=False, ranks=()),
    "at rendezvous": Point("app.ranks.team.Team.join", rank=1, joined=False),
    "in the first step": Point("app.training.steps.reduce_gradients", rank=1),
    "in an evaluation": Point("app.training.steps.evaluate", rank=1, occurrence=2),
    "in a save": Point("app.training.saver.commit", rank=0),
}
STOPS = {
    "the launcher": lambda ranks: Disturbance(signal.SIGTERM, launcher=True),
    "the launcher twice": lambda ranks: Disturbance(signal.SIGTERM, launcher=True, times=2),
    "one of them": lambda ranks: Disturbance(signal.SIGTERM, *ranks[-1:]),
    "all of them twice": lambda ranks: Disturbance(signal.SIGTERM, *ranks, launcher=True, times=2),
}
SOME_STOPS = [
    ("at import", "the launcher twice", "torch"),
    ("at rendezvous", "one of them", "torch"),
    ("in the first step", "all of them twice", "torch"),
    ("in an evaluation", "one of them", "lightning"),
    ("in a save", "the launcher twice", "torch"),
]
TRAINERS = ("torch", "lightning")
ALL_STOPS = [
    (point, stop, trainer)
    for point, stop, trainer in itertools.product(POINTS, STOPS, TRAINERS)
    if POINTS[point].ranks or stop != "one of them"  # nobody is there yet
]


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of runs with a text that is long enough for a validation loss."""
    path = tmp_path_factory.mktemp("text") / "long.txt"
    path.write_text("\n\n".join(f"Line {number} of a longer text." for number in range(4000)))
    return {"DATASET": str(path), "VAL_EVERY_STEPS": "4", "VAL_TOKENS": "256"}


@pytest.mark.parametrize(("point", "stop", "trainer"), ALL_STOPS if LONG else SOME_STOPS)
def test_a_signal_at_any_point_stops_all_and_costs_no_bit(
    point: str,
    stop: str,
    trainer: str,
    job: JobRunner,
    undisturbed: Callable[..., Outcome],
    tmp_path: Path,
    validated: dict[str, str],
) -> None:
    where = POINTS[point]
    act = STOPS[stop](where.ranks)
    job = job.with_(DEVICES="3", TRAINER=trainer, **validated)
    hooked, when = where.disturbed(job, tmp_path, act)
    stopped = hooked.run("train", when=when)
    assert stopped.code == 143, stopped.log
    act.assert_over(stopped, 60)
    assert newest_step(job) == max([0, *steps_in(stopped.log)]), stopped.log
    finished = job.run("train")
    assert finished.code == 0, finished.log
    assert outcome(store_of(job)).differences(undisturbed(3, **validated)) == []


SOME_KILLS: list[tuple[str, int, signal.Signals, str]] = [
    ("in the first step", 2, signal.SIGSTOP, "torch"),
    ("in an evaluation", 0, signal.SIGKILL, "lightning"),
    ("in a save", 1, signal.SIGKILL, "torch"),
]
ALL_KILLS = [
    kill
    for kill in itertools.product(POINTS, range(3), (signal.SIGKILL, signal.SIGSTOP), TRAINERS)
    if kill[1] in POINTS[kill[0]].ranks
]


@pytest.mark.parametrize(("point", "rank", "deed", "trainer"), ALL_KILLS if LONG else SOME_KILLS)
@pytest.mark.parametrize("kind", STORES)
def test_a_process_lost_at_any_point_costs_the_step_in_progress_and_no_bit(
    kind: str,
    point: str,
    rank: int,
    deed: signal.Signals,
    trainer: str,
    job: JobRunner,
    undisturbed: Callable[..., Outcome],
    tmp_path: Path,
    validated: dict[str, str],
    request: pytest.FixtureRequest,
) -> None:
    where, act = POINTS[point], Disturbance(deed, rank)
    if kind == "s3":
        job = in_bucket(job, request)
    job = job.with_(DEVICES="3", TRAINER=trainer, **validated)
    hooked, when = where.disturbed(job, tmp_path, act)
    lost = hooked.run("train", when=when)
    assert lost.code == 75, lost.log
    act.assert_over(lost, 40)
    assert newest_step(job) >= max([0, *steps_in(lost.log)]), lost.log
    told = [info.key for info in store_of(job).list("attempts/") if "-flight" in info.key]
    assert bool(told) == where.joined, "the flight recorders of those that noticed it"
    finished = job.run("train")
    assert finished.code == 0, finished.log
    assert outcome(store_of(job)).differences(undisturbed(3, **validated)) == []
