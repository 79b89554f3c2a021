"""The job as a process of its own, the way an orchestrator runs it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from app.sections import variables

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Finished:
    code: int
    log: str


@dataclass(frozen=True)
class JobRunner:
    """Starts `python -m app` with a clean environment, plus what is given."""

    environment: Mapping[str, str] = field(default_factory=dict)

    def with_(self, **changes: str) -> "JobRunner":
        return JobRunner({**self.environment, **changes})

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        own = {variable.name for variable in variables()}
        inherited = {name: value for name, value in os.environ.items() if name not in own}
        return subprocess.Popen(
            [sys.executable, "-m", "app", *arguments],
            cwd=ROOT,
            env={**inherited, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str) -> Finished:
        process = self.start(*arguments)
        log, _ = process.communicate(timeout=240)
        return Finished(process.returncode, log)

    def signal_when(self, text: str, number: signal.Signals, *arguments: str) -> Finished:
        """Send a signal as soon as a line with `text` is printed."""
        process = self.start(*arguments)
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if text in line:
                process.send_signal(number)
                break
        rest, _ = process.communicate(timeout=240)
        log = "".join(lines) + rest
        assert text in log, f"{text!r} never appeared in:\n{log}"
        return Finished(process.returncode, log)


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every weight and optimizer moment of a checkpoint folder."""
    return {
        f"{file}:{name}": tensor
        for file in ("model.safetensors", "optimizer.safetensors")
        for name, tensor in load_file(checkpoint / file).items()
    }


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
