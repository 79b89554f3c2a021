"""Whether the goodput that `plan` foretells is what a job has that is really killed.

    python -m tests.drills.goodput --kills 20

A run of MODEL=tiny is killed (SIGKILL) again and again, at random times, and started again at once.
The simulation of a second run, which is killed at other times, knows what the first measured of
itself, from its store, and how long it took from a kill until the next process was there. A run
that is killed cannot know that: it is the wait for a node, which a user adds to --restart-seconds.
What share of the second run's time becomes steps that stay is foretold before it begins, and has
to be right within 5 %.
"""

import argparse
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from app.observe.goodput import Costs, Measured, measured, simulated
from app.observe.reported_run import read_run
from app.run.view import read_view
from app.stores.contract import Store
from app.stores.opening import open_store
from tests.support.forked_job import ForkedJobRunner
from tests.support.small_job import make_tokenizer, small_job

ALLOWED = 0.05  # of the goodput
_EVERY = 4


def killed_again_and_again(runner: ForkedJobRunner, pauses: list[float]) -> Iterator[float]:
    """Kill the job after each of `pauses` seconds; gives the time since the kill before."""
    assert runner.run("config").code == 0  # from here on jobs are forked in no time
    before = time.monotonic()
    for pause in pauses:
        process = runner.start("train")
        timer = threading.Timer(pause, process.kill)
        timer.start()
        for _ in process.stdout:  # until it is gone
            pass
        process.wait()
        timer.cancel()
        now = time.monotonic()
        yield now - before
        before = now


def costs_of(found: Measured) -> Costs:
    """What the run measured. A kill leaves no time for a last step."""
    values = (found.step, found.save, found.commit, found.restart)
    step, save, commit, restart = (0.0 if value is None else value for value in values)
    if not step:
        raise ValueError(f"the run measured too little of itself: {found}")
    return Costs(step, save, commit, restart, kept=0.0)


def kept_steps(store: Store) -> int:
    return read_view(store).newest_step


def killed_run(folder: Path, tokenizer: Path, pauses: list[float]) -> Measured:
    """What a run has measured of itself whose processes are killed after `pauses` seconds each."""
    folder.mkdir()
    job = small_job(folder, tokenizer) | {
        "CHECKPOINT_URI": f"file://{folder}/store",
        "TOTAL_STEPS": "1000000",
        "CHECKPOINT_EVERY_STEPS": str(_EVERY),
        "LEASE_TTL": "2",
        "TRAINER": "torch",
    }
    intervals = []
    for interval in killed_again_and_again(ForkedJobRunner(job), pauses):
        intervals.append(interval)
        print(f"kill {len(intervals)} after {interval:.1f} s", flush=True)
    store = open_store(f"file://{folder}/store", "tiny")
    return replace(measured(read_run(store)), steps=kept_steps(store), wall=sum(intervals))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--shortest", type=float, default=12.0, help="seconds between two kills")
    parser.add_argument("--longest", type=float, default=24.0)
    parser.add_argument("--seed", type=int, default=1)
    words = parser.parse_args()
    draw = random.Random(words.seed)
    first, second = (
        [draw.uniform(words.shortest, words.longest) for _ in range(words.kills)] for _ in range(2)
    )
    with tempfile.TemporaryDirectory() as name:
        tokenizer = Path(name) / "tokenizer"
        make_tokenizer(tokenizer)
        before = killed_run(Path(name) / "first", tokenizer, first)
        costs = costs_of(before)
        wait = (before.wall - sum(first)) / words.kills  # from a kill until the next process
        print(f"the first run had {100 * (before.goodput or 0.0):.1f} %, and measured {costs}")
        print(f"from a kill until the next process: {wait:.2f} s")
        costs = replace(costs, restart=costs.restart + wait)
        foretold = simulated(costs, _EVERY, [pause + wait for pause in second])
        print(f"foretold of the second run: {100 * foretold:.1f} %", flush=True)
        found = killed_run(Path(name) / "second", tokenizer, second)
    real = found.goodput or 0.0
    off = abs(foretold - real) / real if real else 1.0
    print(
        f"{words.kills} kills in {found.wall:.0f} s, {found.steps} steps stayed: goodput "
        f"{100 * real:.1f} %, foretold {100 * foretold:.1f} %, {100 * off:.1f} % off"
    )
    return 0 if off <= ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
