"""What works on this machine's GPUs: each feature is tried by a real run of seconds.

    scripts/gpu-check                   # everything, in under 8 minutes
    scripts/gpu-check --json found.json # and where the numbers go; gpu-check.json without it

Nothing is installed, and nothing leaves the machine: the text and the tokenizer are the builtin
ones. What the machine cannot do is not tried, and the summary says why. On a machine without a GPU
the same runs are made on the CPU with the smallest model, so that this script itself is tried.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIMIT_SECONDS = 450.0  # of all checks together
LONGEST_CHECK = 180.0
OLDEST_TORCH = (2, 11)
PACKAGES = ("torch", "triton", "pytorch-lightning", "numpy", "safetensors", "tokenizers")
BYTES_PER_PARAMETER = 16  # weights, gradients and two moments in float32
LAST_LINES = 15


class NotTried(Exception):
    """What this machine lacks."""


class Failed(Exception):
    """What went wrong, with the end of the log."""


@dataclass(frozen=True)
class Machine:
    """`gpus` are their names; `memory` is the bytes of the smallest. All empty without a GPU."""

    python: str
    system: str
    processors: int | None
    packages: dict[str, str]
    cuda: str | None
    nccl: str | None
    driver: str | None
    gpus: list[str]
    memory: int


@dataclass
class Found:
    """`outcome` is passed, failed or not tried; `why` for the latter two."""

    name: str
    outcome: str
    seconds: float
    why: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


def this_machine() -> Machine:
    import torch

    def version_of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    cuda = torch.cuda.is_available()
    cards = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count() * cuda)]
    has_nccl = cuda and torch.distributed.is_nccl_available()
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if has_nccl else None
    return Machine(
        platform.python_version(),
        platform.platform(),
        os.cpu_count(),
        {package: version_of(package) for package in PACKAGES},
        torch.version.cuda,
        nccl,
        driver_version(),
        [card.name for card in cards],
        min((card.total_memory for card in cards), default=0),
    )


def driver_version() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30)
    return answer.stdout.strip().partition("\n")[0] or None


class Checks:
    """The checks, each a method that returns figures, or raises NotTried or Failed."""

    def __init__(self, machine: Machine, folder: Path, steps: int) -> None:
        self.machine, self._folder, self._steps = machine, folder, steps
        self.until = time.monotonic() + LIMIT_SECONDS
        self._losses: dict[str, list[float]] = {}

    def all(self) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        yield "GPU tests", self.gpu_tests
        for model in ("tiny", "smollm2-135m", "smollm2-360m", "smollm2-1.7b"):
            yield f"one step of {model}", partial(self.one_step, model)
        yield "plain loop", lambda: self.trained("torch", TRAINER="torch")
        yield "Lightning", self.lightning
        yield "compiled", lambda: self.on_gpu("compiled", COMPILE="true")
        yield "FlexAttention", lambda: self.on_gpu("flex", DOCUMENT_MASK="true", COMPILE="true")
        yield "Muon", lambda: self.trained("muon", OPTIMIZER="muon")
        yield "kill and resume", self.kill_and_resume
        yield "several processes", self.several_processes

    def gpu_tests(self) -> dict[str, Any]:
        """Those that are skipped without a GPU."""
        self._need_gpu()
        if find_spec("pytest") is None:
            raise NotTried("pytest is not installed")
        files = ("model/test_attention.py", "model/test_document_mask.py", "state/test_snapshot.py")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-o", "addopts="]
        log = self._run([*command, *(f"tests/{file}" for file in files)], {})
        return {"pytest": log.strip().splitlines()[-1]}

    def one_step(self, model: str) -> dict[str, Any]:
        """Forwards, backwards and an update, without a checkpoint: the large ones are 20 GB."""
        from app.settings.presets import PRESETS

        if model != "tiny":
            self._need_gpu()
        needed = BYTES_PER_PARAMETER * PRESETS[model].parameter_count
        if self.machine.gpus and needed > 0.8 * self.machine.memory:
            raise NotTried(f"needs {needed / 1e9:.0f} GB of GPU memory and some for activations")
        log = self._run([sys.executable, "-m", "scripts.gpu_check", "--one_step", model], {})
        return dict(json.loads(log.strip().splitlines()[-1]))

    def on_gpu(self, name: str, **variables: str) -> dict[str, Any]:
        self._need_gpu()
        return self.trained(name, **variables)

    def lightning(self) -> dict[str, Any]:
        if find_spec("pytorch_lightning") is None:
            raise NotTried("pytorch-lightning is not installed")
        return {**self.trained("lightning", TRAINER="lightning"), **self._beside("lightning")}

    def kill_and_resume(self) -> dict[str, Any]:
        """SIGKILL after a checkpoint, and the run goes on to the losses of the one before."""
        middle = max(1, self._steps // 2)
        variables = {"CHECKPOINT_EVERY_STEPS": str(middle), "TRAINER": "torch"}
        killed = f"checkpoint step {middle} saved"
        self._run(self._train(), self._variables("killed", variables), kill_at=killed)
        return {**self.trained("killed", **variables), **self._beside("killed")}

    def several_processes(self) -> dict[str, Any]:
        """DEVICES=auto: a process for each GPU. Two processes on a CPU."""
        gpus = len(self.machine.gpus)
        made = self.trained("several", TRAINER="torch", DEVICES="auto" if gpus else "2")
        return {"processes": gpus or 2, **made, **self._beside("several")}

    def trained(self, name: str, **variables: str) -> dict[str, Any]:
        """Train to the end. What the last row says of speed, and the first and last loss."""
        log = self._run(self._train(), self._variables(name, variables))
        rows = sorted((self._folder / name).glob("store/*/logs/metrics.jsonl"))
        if not rows:
            raise Failed(f"no metrics.jsonl was written:\n{log[-2000:]}")
        read = [json.loads(line) for line in rows[0].read_text("utf-8").splitlines()]
        self._losses[name] = [row["loss"] for row in read]
        last = read[-1]
        speed = last["tokens_per_second"]
        return {
            "steps": last["step"],
            "losses": [read[0]["loss"], last["loss"]],
            "tokens_per_second": None if speed is None else round(speed),
            "mfu": last["mfu"],
        }

    def _beside(self, name: str) -> dict[str, Any]:
        """How far the losses are from those of the plain loop. Raises Failed if that is far."""
        pairs = list(zip(self._losses.get("torch", []), self._losses[name], strict=False))
        farthest = max((abs(a - b) / a for a, b in pairs), default=0.0)
        if farthest > 0.02:
            raise Failed(f"the losses are up to {farthest:.2%} away from those of the plain loop")
        return {"farthest_loss": farthest}

    def _need_gpu(self) -> None:
        if not self.machine.gpus:
            raise NotTried("no GPU")

    def _variables(self, name: str, variables: Mapping[str, str]) -> dict[str, str]:
        folder, gpu = self._folder / name, bool(self.machine.gpus)
        return {
            "MODEL": "smollm2-135m" if gpu else "tiny",
            "DEVICE": "cuda" if gpu else "cpu",
            "DEVICES": "1",
            "DATASET": "builtin",
            "TOKENIZER": "builtin",
            "SEQ_LEN": "512" if gpu else "64",
            "BATCH_SIZE": "2",
            "GLOBAL_BATCH_SIZE": "8",
            "WARMUP_STEPS": "2",
            "TOTAL_STEPS": str(self._steps),
            "COMPILE": "false",
            **({} if gpu else {"OMP_NUM_THREADS": "1", "PRECISION": "32-true"}),
            "VAL_EVERY_STEPS": "0",
            "LOG_EVERY_STEPS": "1",
            "SAMPLE_EVERY_STEPS": "0",
            "LEASE_TTL": "5",
            "CHECKPOINT_URI": f"file://{folder}/store",
            "DATA_DIR": str(self._folder / "data"),
            **variables,
        }

    def _train(self) -> list[str]:
        return [sys.executable, "-m", "app", "train"]

    def _run(self, command: list[str], variables: dict[str, str], kill_at: str = "") -> str:
        """What it has said. Raises Failed if it did not end well, or took too long."""
        seconds = min(LONGEST_CHECK, self.until - time.monotonic())
        if seconds < 5:
            raise NotTried("the time was over")
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**_plain_environment(), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        late = threading.Event()

        def end() -> None:
            late.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(seconds, end)
        timer.start()
        lines: list[str] = []
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if kill_at and kill_at in line:
                os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        timer.cancel()
        end_of_log = "".join(lines[-LAST_LINES:])
        if late.is_set():
            raise Failed(f"not over after {seconds:.0f} s:\n{end_of_log}")
        if kill_at and code != -signal.SIGKILL:
            raise Failed(f"it was not killed, but ended with {code}:\n{end_of_log}")
        if not kill_at and code:
            raise Failed(f"exit {code}:\n{end_of_log}")
        return "".join(lines)


def _plain_environment() -> dict[str, str]:
    """Without what would change the runs: the job's own variables, and credentials."""
    from app.settings.variables import variables

    own = {variable.name for variable in variables()}
    kept = {name: value for name, value in os.environ.items() if name not in own}
    return {name: value for name, value in kept.items() if not name.startswith(("AWS_", "PET_"))}


def one_step(model_name: str) -> None:
    """Make one step on the GPU, or on the CPU without one, and print its figures."""
    import torch

    from app.model.loss import LossFunction
    from app.model.smollm2 import SmolLM2
    from app.settings.presets import PRESETS
    from app.settings.variables import ComputeSettings, OptimizerSettings
    from app.training.compute import resolve_compute
    from app.training.optimizer import build_optimizer

    compute, config = resolve_compute(ComputeSettings()), PRESETS[model_name]
    model = SmolLM2.empty(config, compute.device, gradient_checkpointing=False)
    model.initialize(1)
    optimizer = build_optimizer(model, OptimizerSettings(), compute.device)
    loss_function = LossFunction(model, compile_model=False, fused=compute.fused_loss)
    length = 512 if compute.device.type == "cuda" else 64
    tokens = torch.randint(0, config.vocab_size, (1, length + 1)).to(compute.device)
    before = next(model.parameters()).detach().clone()
    began = time.perf_counter()
    with compute.autocast():
        loss = loss_function(tokens)
    loss.backward()
    optimizer.step()
    moved = not torch.equal(before, next(model.parameters()))
    number = float(loss)
    if not moved or not 0 < number < 20:
        raise SystemExit(f"the loss is {number}, and the weights moved: {moved}")
    cuda = compute.device.type == "cuda"
    figures = {
        "loss": number,
        "seconds": round(time.perf_counter() - began, 3),
        "precision": compute.precision,
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if cuda else None,
    }
    print(json.dumps(figures))


def checked(checks: Checks, only: str) -> list[Found]:
    """Everything in turn; each is told as soon as it is over."""
    found = []
    for name, check in checks.all():
        if not re.search(only, name):
            continue
        began = time.monotonic()
        try:
            result = Found(name, "passed", 0, figures=check())
        except NotTried as why:
            result = Found(name, "not tried", 0, str(why))
        except Failed as why:
            result = Found(name, "failed", 0, str(why))
        result.seconds = round(time.monotonic() - began, 1)
        found.append(result)
        print(told(result), flush=True)
    return found


def told(result: Found) -> str:
    figures = ", ".join(f"{name} {value}" for name, value in result.figures.items())
    line = f"{result.outcome:9}  {result.name:22} {result.seconds:6.1f} s  {figures}"
    return f"{line}{result.why}".rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", default="gpu-check.json")
    parser.add_argument("--only", metavar="WORDS", default="", help="checks with these words")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--one_step", metavar="MODEL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_step:
        one_step(arguments.one_step)
        return
    began, machine = time.monotonic(), this_machine()
    numbers = tuple(int(n) for n in re.findall(r"\d+", machine.packages["torch"])[:2])
    gpus = ", ".join(machine.gpus) or "no GPU"
    print(f"torch {machine.packages['torch']} (CUDA {machine.cuda or 'none'}): {gpus}")
    if numbers < OLDEST_TORCH:
        sys.exit(f"torch {machine.packages['torch']} is too old: 2.11 or newer is needed")
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        found = checked(Checks(machine, Path(folder), arguments.steps), arguments.only)
    outcomes = [result.outcome for result in found]
    counts = ", ".join(f"{outcomes.count(o)} {o}" for o in ("passed", "failed", "not tried"))
    report = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began, 1),
        "machine": asdict(machine),
        "checks": [asdict(result) for result in found],
    }
    Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    print(f"{counts} in {report['seconds']} s; the numbers are in {arguments.json}")
    sys.exit("failed" in outcomes)


if __name__ == "__main__":
    main()
