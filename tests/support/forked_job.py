"""The job forked from a process that has imported torch: a second instead of several.

What runs is `app.__main__` (or another module), in a session of its own, with the environment
that it is given. `before` runs in it first, to change what no variable can: the clock, or a
signal at an exact place.
"""

import functools
import io
import multiprocessing
import os
import pkgutil
import runpy
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Self
from unittest import mock

from app.training.step_log import StepLog
from tests.support.job import Action, JobProcess, JobRunner

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.support.preloaded"])


class ForkedProcess:
    """See `tests.support.job.JobProcess`."""

    def __init__(self, process: ForkServerProcess, output: io.TextIOWrapper) -> None:
        assert process.pid is not None
        self.pid, self.stdout = process.pid, output
        self._process = process

    def send_signal(self, number: int, /) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


def nothing() -> None:
    """The default of `before`."""


@dataclass(frozen=True)
class ForkedJobRunner(JobRunner):
    """A JobRunner whose jobs start fast. `before` is pickled: functions of modules, partials."""

    before: Callable[[], None] = field(default=nothing)

    def preceded_by(self, act: Callable[..., None], *arguments: Any) -> Self:
        """The same job, with `act` as what runs before it."""
        return replace(self, before=functools.partial(act, *arguments))

    def halting(
        self, place: str, folder: Path, act: Action, occurrence: int = 1
    ) -> tuple[Self, dict[str, Action]]:
        """The same job, which waits in that call of the function at `place`, and the action for
        its log: `act`, and then it goes on. `folder` gets a pipe."""
        os.mkfifo(pipe := folder / "pipe")

        def act_and_go_on(process: JobProcess) -> None:
            act(process)
            pipe.write_bytes(b"")

        return self.preceded_by(wait_at, place, pipe, occurrence), {
            f"waiting in {place}": act_and_go_on
        }

    def start(self, *arguments: str) -> ForkedProcess:
        reader, writer = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(
            target=_run_job,
            args=(writer, self.whole_environment(), self.module, arguments, self.before),
        )
        process.start()
        writer.close()
        output = os.fdopen(os.dup(reader.fileno()), "r", encoding="utf-8")
        reader.close()
        return ForkedProcess(process, output)


def at(place: str, occurrence: int, act: Callable[[], None]) -> None:
    """From here on, call number `occurrence` of the function at `place` begins with `act`."""
    original = pkgutil.resolve_name(place)
    count = 0

    @functools.wraps(original)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == occurrence:
            act()
        return original(*arguments, **named)

    mock.patch(place, wrapped).start()


def signal_at(place: str, occurrence: int = 1) -> None:
    """SIGTERM in that call of the function at `place`."""
    at(place, occurrence, lambda: os.kill(os.getpid(), signal.SIGTERM))


def signal_in_step(step: int, number: signal.Signals) -> None:
    """That signal in that step, once the checkpoints of the steps before are committed."""
    original = StepLog.log_row

    def log_row(self: StepLog, made: int, *arguments: Any) -> None:
        if made == step:
            self.checkpointing.saver.wait()
            os.kill(os.getpid(), number)
        original(self, made, *arguments)

    mock.patch.object(StepLog, "log_row", log_row).start()


def wait_at(place: str, pipe: Path, occurrence: int = 1) -> None:
    """That call of the function at `place` says so, and waits until `pipe` is written to."""

    def wait() -> None:
        print(f"waiting in {place}", file=sys.stderr, flush=True)
        pipe.read_bytes()

    at(place, occurrence, wait)


def _run_job(
    writer: Connection,
    environment: Mapping[str, str],
    module: str,
    arguments: Sequence[str],
    before: Callable[[], None],
) -> None:
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # as in a process that nobody forked
    for descriptor in (1, 2):
        os.dup2(writer.fileno(), descriptor)
    writer.close()
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    before()
    runpy.run_module(module, run_name="__main__", alter_sys=True)
