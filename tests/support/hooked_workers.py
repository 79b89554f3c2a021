"""Runs of which one process is changed: it waits at an exact place, or needs longer than others."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.forked_job import wait_at
from tests.support.job import ROOT, Action, JobProcess, JobRunner


def waiting_at(
    job: JobRunner, rank: int, place: str, occurrence: int, folder: Path, act: Action
) -> tuple[JobRunner, dict[str, Action]]:
    """The job, whose process of that rank waits in that call of the function at `place`, and the
    action for its log: `act`, and then it goes on. `folder` gets a pipe."""
    os.mkfifo(pipe := folder / "pipe")

    def act_and_go_on(process: JobProcess) -> None:
        act(process)
        # In a thread: if that process has been killed, nobody will ever read.
        threading.Thread(target=pipe.write_bytes, args=(b"",), daemon=True).start()

    hooked = _with_hook(job, rank, "wait", place, str(pipe), occurrence)
    return hooked, {f"waiting in {place}": act_and_go_on}


def slowed_down(job: JobRunner, rank: int, times: int) -> JobRunner:
    """The job, whose process of that rank computes each loss so many times."""
    return _with_hook(job, rank, "compute_again", times)


def _with_hook(job: JobRunner, rank: int, function: str, *arguments: Any) -> JobRunner:
    path = [str(ROOT / "tests" / "support" / "worker_hooks"), str(ROOT)]
    inherited = job.whole_environment().get("PYTHONPATH")
    return job.with_(
        PYTHONPATH=os.pathsep.join([*path, inherited] if inherited else path),
        WORKER_HOOK=json.dumps([rank, function, arguments]),
    )


def wait(place: str, pipe: str, occurrence: int) -> None:
    """In the worker: see `waiting_at`."""
    wait_at(place, Path(pipe), occurrence)


def compute_again(times: int) -> None:
    """In the worker: see `slowed_down`."""
    from app.training.steps import Steps

    original: Callable[..., Any] = Steps.loss

    def loss(self: Steps, tokens: Any) -> Any:
        for _ in range(times - 1):
            original(self, tokens)
        return original(self, tokens)

    Steps.loss = loss  # type: ignore[method-assign]
