"""The job as a process of its own, the way an orchestrator runs it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Protocol, Self

import torch
from safetensors.torch import load_file

from app.run.layout import METRICS_KEY
from app.run.view import read_view
from app.settings.variables import variables
from app.stores.contract import Store

ROOT = Path(__file__).parents[2]


class JobProcess(Protocol):
    """What the tests need of a running job: a part of subprocess.Popen."""

    @property
    def pid(self) -> int: ...
    @property
    def stdout(self) -> IO[str] | None: ...
    def send_signal(self, number: int, /) -> None: ...
    def kill(self) -> None: ...
    def wait(self) -> int: ...


Action = Callable[[JobProcess], None]


def both(then: Callable[[], None]) -> Action:
    """An action for two lines: `then` happens at the second of them."""
    seen: list[JobProcess] = []

    def note(process: JobProcess) -> None:
        seen.append(process)
        if len(seen) == 2:
            then()

    return note


@dataclass(frozen=True)
class Finished:
    code: int
    log: str


@dataclass(frozen=True)
class JobRunner:
    """Starts `python -m app` (or another module) with a clean environment, plus what is given."""

    environment: Mapping[str, str] = field(default_factory=dict)
    module: str = "app"
    limit_seconds: float = 240

    def with_(self, **changes: str) -> Self:
        return replace(self, environment={**self.environment, **changes})

    def whole_environment(self) -> dict[str, str]:
        own = {variable.name for variable in variables()}
        inherited = {name: value for name, value in os.environ.items() if name not in own}
        return {**inherited, **self.environment}

    def start(self, *arguments: str) -> JobProcess:
        return subprocess.Popen(
            [sys.executable, "-m", self.module, *arguments],
            cwd=ROOT,
            env=self.whole_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(
        self,
        *arguments: str,
        when: Mapping[str, Action] | None = None,
        begin: Action | None = None,
    ) -> Finished:
        """Run to the end; each action of `when` is taken at the first line with its text,
        and `begin` as soon as there is a process."""
        process = self.start(*arguments)
        if begin is not None:
            begin(process)
        # Its children too: one of them can keep the output open.
        watchdog = threading.Timer(self.limit_seconds, os.killpg, (process.pid, signal.SIGKILL))
        watchdog.start()
        waiting, lines = dict(when or {}), []
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            for text in [text for text in waiting if text in line]:
                waiting.pop(text)(process)
        code = process.wait()
        watchdog.cancel()
        log = "".join(lines)
        assert not waiting, f"{list(waiting)} never appeared in:\n{log}"
        return Finished(code, log)

    def signal_when(self, text: str, number: signal.Signals, *arguments: str) -> Finished:
        """Send a signal as soon as a line with `text` is printed."""
        return self.run(*arguments, when={text: lambda process: process.send_signal(number)})


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every weight and optimizer moment of a checkpoint folder."""
    return {
        f"{file}:{name}": tensor
        for file in ("model.safetensors", "optimizer.safetensors")
        for name, tensor in load_file(checkpoint / file).items()
    }


@dataclass(frozen=True)
class Outcome:
    """Every tensor of the last checkpoint, and (step, loss, gradient norm) of every row."""

    tensors: Mapping[str, torch.Tensor]
    rows: list[tuple[int, float, float]]

    def differences(self, other: "Outcome") -> list[str]:
        """What is not the same, to the last bit."""
        names = sorted(self.tensors.keys() | other.tensors.keys())
        found = [name for name in names if not self._same(other, name)]
        return found + ([f"rows {self.rows} {other.rows}"] if self.rows != other.rows else [])

    def _same(self, other: "Outcome", name: str) -> bool:
        a, b = self.tensors.get(name), other.tensors.get(name)
        return a is not None and b is not None and torch.equal(a, b)


def outcome(store: Store) -> Outcome:
    """What a finished run left in its store."""
    with tempfile.TemporaryDirectory() as folder:
        last = read_view(store).find("latest")
        keys = [last.key(f"{name}.safetensors") for name in ("model", "optimizer")]
        paths = [store.fetch(key, Path(folder)) for key in keys]
        found = {name: tensor.clone() for name, tensor in tensors(paths[0].parent).items()}
    rows = [json.loads(line) for line in store.get(METRICS_KEY)[0].splitlines()]
    return Outcome(found, [(row["step"], row["loss"], row["grad_norm"]) for row in rows])


def newest_checkpoint(run: Path) -> Path:
    manifests = sorted(run.glob("checkpoints/*/manifest.json"))
    return manifests[-1].parent


def losses(run: Path) -> list[tuple[int, float, float]]:
    """(step, loss, grad norm) of every row of metrics.jsonl."""
    lines = (run / "logs" / "metrics.jsonl").read_text("utf-8").splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows]


def assert_same_checkpoint(first: Path, second: Path) -> None:
    a, b = tensors(first), tensors(second)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, f"{len(different)} of {len(a)} tensors differ, first: {different[0]}"
