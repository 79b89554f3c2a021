"""The simulation against a clock that is moved step by step, and what is measured of a run."""

import math
import random
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from app.observe.goodput import Costs, daly, measured, preemptions, simulated, young
from app.observe.reported_run import ReportedRun
from app.observe.rows import Row
from app.run.journal import AttemptRecord

COSTS = Costs(step=1.0, save=0.25, commit=2.5, restart=20.0, kept=0.0)


def by_the_clock(costs: Costs, every: int, intervals: list[float]) -> float:
    """The same as `simulated`, each step and save by itself; nothing is kept."""
    committed = 0
    for interval in intervals:
        now, step, on_the_way = costs.restart, committed, []
        while (now := now + costs.step) <= interval:
            step += 1
            if step % every == 0:
                on_the_way.append((now + costs.commit, step))
                now += costs.save
        committed = max([committed, *(s for done, s in on_the_way if done <= interval)])
    return committed * costs.step / sum(intervals)


@pytest.mark.parametrize("every", [3, 4, 20, 100, 1000])
def test_the_simulation_is_what_a_clock_says(every: int) -> None:
    draw = random.Random(7)
    intervals = [draw.expovariate(1 / 300) for _ in range(400)]
    exact = by_the_clock(COSTS, every, intervals)
    assert simulated(COSTS, every, intervals) == pytest.approx(exact, rel=0.002, abs=1e-9)


def test_where_every_last_step_is_kept_only_restarts_cost_something() -> None:
    """A step begins only after `restart`: of exponential times exp(-restart / mean) is left."""
    costs = replace(COSTS, kept=1.0, save=0.0, step=0.01)
    found = simulated(costs, 10**6, preemptions(200.0))
    assert found == pytest.approx(math.exp(-20 / 200), rel=0.02)


def test_a_store_slower_than_the_interval_loses_what_waits_for_it() -> None:
    intervals = [1000.0] * 50
    slow = replace(COSTS, commit=100.0)
    assert simulated(slow, 10, intervals) < simulated(COSTS, 10, intervals) - 0.05


def test_the_best_interval_is_near_the_one_of_the_formulas() -> None:
    costs = replace(COSTS, save=2.0, commit=0.0, restart=0.0)
    mean, intervals = 1000.0, preemptions(1000.0)
    best = max(range(5, 400, 5), key=lambda every: simulated(costs, every, intervals))
    assert young(costs, mean) == pytest.approx(math.sqrt(2 * 2 * 1000))
    assert daly(costs, mean) == pytest.approx(young(costs, mean), rel=0.05)
    assert 0.5 * daly(costs, mean) <= best <= 2 * daly(costs, mean)
    # A save that takes longer than what is between two preemptions: once in that time.
    assert daly(replace(costs, save=3000.0), mean) == mean


def attempt(epoch: int, start: float, **values: object) -> AttemptRecord:
    moment = datetime.fromtimestamp(start, UTC).isoformat()
    return AttemptRecord.model_validate(
        {
            "epoch": epoch,
            "holder": "x",
            "trainer": "torch",
            "started_at": moment,
            "resumed_from": None,
            "start_step": 0,
            "step": 0,
            **values,
        }
    )


def row(step: int, time: float, number: int) -> Row:
    return Row(step, step * 10, 1.0, 1e-3, 1.0, 100.0, None, None, number, time)


def test_what_a_run_measured_of_itself() -> None:
    common = {"saves": 2, "commits": 2, "stall_seconds": 1.0, "longest_upload_lag": 3.0}
    attempts = [
        attempt(
            1, 1000, seconds=100, step=50, seconds_to_first_step=12.0, **common, ended="exit 143"
        ),
        attempt(2, 1130, seconds=60, start_step=50, step=100, seconds_to_first_step=8.0, **common),
        attempt(3, 1240, seconds=60, start_step=80, step=130, **common, ended="target reached"),
    ]
    rows = [
        row(1, 1010, 1),
        row(51, 1110, 1),
        row(60, 1150, 2),
        row(80, 1190, 2),
        row(130, 1300, 3),
    ]
    found = measured(ReportedRun("r", None, rows, attempts))
    assert (found.wall, found.steps, found.interruptions) == (300, 130, 2)
    stall = 3.0 / 150
    assert found.step == pytest.approx(140 / 70 - stall)
    assert (found.save, found.commit) == (0.5, 3.0)
    # Ten seconds to the first step, without the step, and thirty until the next process started.
    assert found.step is not None
    assert found.restart == pytest.approx(10 - found.step + 30)
    assert found.kept == 0.5
    assert found.goodput == pytest.approx(130 * found.step / 300)


def test_the_steps_of_a_run_with_more_attempts_than_are_read_count_from_the_oldest_that_was() -> (
    None
):
    """Steps 1 to 5,000 were made by attempts that are not among these."""
    attempts = [
        attempt(201, 1000, seconds=100, start_step=5000, step=5100, ended="exit 143"),
        attempt(202, 1100, seconds=100, start_step=5100, step=5200),
    ]
    rows = [row(step, step - 4000, 201 if step < 5100 else 202) for step in range(5000, 5201, 10)]
    found = measured(ReportedRun("r", None, rows, attempts))
    assert (found.wall, found.steps, found.reached) == (200, 200, 5200)
    assert found.goodput == pytest.approx(1.0)


def test_the_time_for_which_a_run_was_finished_is_no_restart_and_no_time_that_was_lost() -> None:
    month = 30 * 86_400
    first = attempt(1, 0, seconds=100, step=90, seconds_to_first_step=10.0, ended="target reached")
    second = attempt(
        2,
        100 + month,
        seconds=100,
        start_step=90,
        step=180,
        seconds_to_first_step=10.0,
        ended="target reached: step 180",
    )
    rows = [row(step, 10 + step, 1) for step in range(91)]
    rows += [row(step, 20 + step + month, 2) for step in range(91, 181)]
    found = measured(ReportedRun("r", None, rows, [first, second]))
    assert (found.wall, found.steps, found.interruptions) == (200, 180, 0)
    assert found.restart == pytest.approx(9)
    assert found.goodput == pytest.approx(0.9)


def test_a_run_that_has_begun_only_now_has_measured_nothing() -> None:
    nothing = measured(ReportedRun("r", None, [], []))
    assert (nothing.wall, nothing.steps, nothing.interruptions) == (0, 0, 0)
    assert nothing.goodput is None
    running = measured(ReportedRun("r", None, [row(1, 1010, 1)], [attempt(1, 1000)]))
    assert (running.interruptions, running.step, running.kept) == (0, None, None)
