"""Goodput: how much of the time becomes training that stays, foretold and measured.

What is lost to a preemption is the time until the next step begins, and the steps since the newest
checkpoint that is in the store. Of those nothing is lost where the last whole step is still
committed: by the process that was asked to stop, or by a survivor on another node.
"""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from statistics import fmean, median

from app.observe.reported_run import ReportedRun
from app.observe.rows import Row
from app.run.journal import TARGET_REACHED

_PREEMPTIONS = 4000  # of a simulation: its error is about one part in a hundred of what is lost
_SEED = 1337


@dataclass(frozen=True)
class Costs:
    """What things take, in seconds.

    `save` is what a save holds training up for, `commit` the time from a snapshot until it is in
    the store, `restart` the time from a preemption until the first step begins. `kept` is the share
    of preemptions in which the last whole step is committed.
    """

    step: float
    save: float
    commit: float
    restart: float
    kept: float


@dataclass(frozen=True)
class Measured:
    """What the store says of a run. None is what it does not say. Times in seconds.

    `steps` are those that stayed of the attempts that are known, and `wall` is the time since the
    first of these started, without the time for which the run was finished. `reached` is the
    newest step.
    """

    wall: float
    steps: int
    interruptions: int
    reached: int = 0
    step: float | None = None
    save: float | None = None
    commit: float | None = None
    restart: float | None = None
    kept: float | None = None

    @property
    def goodput(self) -> float | None:
        """The share of the time that became steps which stayed."""
        return self.steps * self.step / self.wall if self.step and self.wall > 0 else None


def measured(run: ReportedRun) -> Measured:
    """From the rows and the records of the attempts. The end of an attempt that was killed is
    not recorded, so the time until the next one started is taken from those that recorded it."""
    spans = run.spans
    attempts = [span.attempt for span in spans]
    saves = sum(a.saves for a in attempts)
    stall = sum(a.stall_seconds for a in attempts)
    step = step_seconds(run.rows, stall / max(1, sum(a.steps for a in attempts)))
    # The newest attempt may still be running, where its record has no end.
    over = [a for a in attempts if a is not attempts[-1] or a.ended is not None]
    cut = [a for a in over if not (a.ended or "").startswith(TARGET_REACHED)]
    ended = [
        (span.kind == "done", max(0.0, after.start - span.end))
        for span, after in pairwise(spans)
        if span.attempt.ended is not None
    ]
    gaps = [gap for done, gap in ended if not done]
    finished = sum(gap for done, gap in ended if done)  # until somebody extended it
    starts = [a.seconds_to_first_step - (step or 0.0) for a in attempts if a.seconds_to_first_step]
    lags = [a.longest_upload_lag for a in attempts if a.commits]
    newest = max((row.time for row in run.rows), default=0.0)
    reached = max((row.step for row in run.rows), default=0)
    wall = 0.0
    if spans:
        wall = max([newest, *(span.end for span in spans)]) - spans[0].start - finished
    return Measured(
        wall=max(0.0, wall),
        # Of a long run only the newest attempts are known: what came before is in neither.
        steps=max(0, reached - (spans[0].attempt.start_step if spans else 0)),
        interruptions=len(cut),
        reached=reached,
        step=step,
        save=stall / saves if saves else None,
        commit=median(lags) if lags else None,
        restart=max(0.0, fmean(starts)) + (fmean(gaps) if gaps else 0.0) if starts else None,
        kept=sum(a.ended is not None for a in cut) / len(cut) if cut else None,
    )


def step_seconds(rows: Sequence[Row], stall: float = 0.0) -> float | None:
    """The mean time of a step: between two rows of one attempt, evaluations included, without the
    `stall` that saves cost for each step."""
    pairs = [
        (after.time - before.time, after.step - before.step)
        for before, after in pairwise(rows)
        if after.attempt == before.attempt and after.step > before.step
    ]
    steps = sum(count for _, count in pairs)
    return max(1e-6, sum(seconds for seconds, _ in pairs) / steps - stall) if steps else None


def preemptions(mean: float, seed: int = _SEED) -> list[float]:
    """Times between two preemptions, in seconds, at random with that mean."""
    draw = random.Random(seed)
    return [draw.expovariate(1 / mean) for _ in range(_PREEMPTIONS)]


def simulated(costs: Costs, every: int, intervals: Iterable[float], seed: int = _SEED) -> float:
    """The goodput of a run that is preempted after each of `intervals` seconds, with a checkpoint
    every `every` steps."""
    chance, step, wall = random.Random(seed), 0, 0.0
    for interval in intervals:
        wall += interval
        made, committed = _attempt(costs, every, step, interval - costs.restart)
        step = made if chance.random() < costs.kept else committed
    return step * costs.step / wall


def _attempt(costs: Costs, every: int, start: int, seconds: float) -> tuple[int, int]:
    """The step that is reached in that time from `start` on, and the newest one in the store."""
    first = every - start % every  # steps until the first save
    cycle = every * costs.step + costs.save
    until_saved = first * costs.step
    if seconds < until_saved:
        return start + max(0, math.floor(seconds / costs.step)), start
    cycles, rest = divmod(max(0.0, seconds - until_saved - costs.save), cycle)
    made = start + first + int(cycles) * every + min(every, math.floor(rest / costs.step))
    since = seconds - costs.commit - until_saved  # since the first save that could be in the store
    if since < 0:
        return made, start
    # A store that is slower than the interval takes only every second, third … snapshot.
    together = max(1, math.ceil(costs.commit / cycle))
    taken = math.floor(since / (together * cycle)) * together
    return made, start + first + taken * every


def young(costs: Costs, mean: float) -> float:
    """Young's interval between checkpoints, in seconds: the square root of 2 · save · mean, where
    `mean` is the time between two preemptions in which steps are lost."""
    return math.sqrt(2 * costs.save * mean)


def daly(costs: Costs, mean: float) -> float:
    """Daly's interval of higher order, in seconds."""
    if costs.save >= 2 * mean:
        return mean
    ratio = math.sqrt(costs.save / (2 * mean))
    return young(costs, mean) * (1 + ratio / 3 + ratio**2 / 9) - costs.save


def candidates(longest: int) -> Iterator[int]:
    """Intervals to try: 1, 2, 5, 10, 20 … steps, up to `longest`."""
    series = (factor * 10**power for power in range(9) for factor in (1, 2, 5))
    return iter([1, *islice((every for every in series if 1 < every <= longest), 30)])
