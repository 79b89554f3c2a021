"""What it costs that several processes share a step: measured here, foretold for a network.

    python -m bench.processes                               # tiny, on 1 to 4 processes
    python -m bench.processes --model 135m --processes 1,2 --json out.json
    python -m bench.processes --foretell 135m --step_seconds 0.4 --bandwidth 12.5e9 --latency 20e-6

Each process has one thread, and all of them together make the same step: the same number of
sequences, each process its part. A step has three parts: computing, waiting for the slowest (the
agreement after the last micro-step ends it), and adding up the gradients. Medians over the steps,
of the process with rank 0. Processes of one machine share its memory and its cores: with more of
them than cores the numbers say nothing about speed, and only what the sum takes is worth a look.

A ring adds up S bytes over N processes in 2 (N - 1) / N S / W seconds at W bytes per second, and
2 (N - 1) L more for each bucket of 32 MiB, where a message takes L seconds.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOAT32 = 4


@dataclass(frozen=True)
class Work:
    """A step: so many sequences of so many tokens, in micro-batches of one process's `batch`."""

    model: str
    sequences: int
    batch: int
    seq_len: int
    steps: int


@dataclass(frozen=True)
class Parts:
    """Seconds of one step."""

    whole: float
    computing: float
    waiting: float
    adding_up: float


def ring_seconds(
    n_bytes: float, processes: int, bandwidth: float, latency: float, bucket_bytes: float
) -> float:
    """How long a ring of `processes` adds up `n_bytes`, with `bandwidth` bytes per second between
    two of them and `latency` seconds for a message."""
    if processes == 1:
        return 0.0
    rounds = 2 * (processes - 1)
    buckets = max(1, math.ceil(n_bytes / bucket_bytes))
    return rounds / processes * n_bytes / bandwidth + rounds * latency * buckets


def foretold(
    n_bytes: float,
    computing: float,
    processes: int,
    bandwidth: float,
    latency: float,
    bucket_bytes: float,
) -> tuple[float, float]:
    """The share of a step that adding up takes, and how much faster a step is than on one process,
    which computes for `computing` seconds."""
    adding = ring_seconds(n_bytes, processes, bandwidth, latency, bucket_bytes)
    whole = computing / processes + adding
    return adding / whole, computing / whole


def work_as_one(work: Work, result: Path) -> None:
    """Make the steps as one of the processes; rank 0 writes its medians."""
    import torch

    from app.data.sample_order import BatchGeometry
    from app.model.loss import LossFunction
    from app.model.smollm2 import SmolLM2
    from app.ranks.reduction import reduce_gradients
    from app.ranks.team import Team, Wish
    from app.settings.place import place_of_this_process
    from app.settings.presets import PRESETS
    from app.settings.variables import OptimizerSettings
    from app.training.optimizer import build_optimizer

    torch.set_num_threads(1)
    place = place_of_this_process()
    team = Team(place, 300)
    if team.is_many:
        if place.rank == 0:
            team.call()
        team.join(torch.device("cpu"))
    model = SmolLM2(PRESETS[work.model])
    model.initialize(1)
    optimizer = build_optimizer(model, OptimizerSettings(), torch.device("cpu"))
    loss_function = LossFunction(model, compile_model=False)
    shape = work.sequences, work.seq_len + 1
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, PRESETS[work.model].vocab_size, shape, generator=generator)
    geometry = BatchGeometry(work.batch, work.sequences, work.seq_len, team.size, team.rank)
    made: list[Parts] = []
    for _ in range(work.steps + 1):
        began = time.perf_counter()
        step_loss = torch.zeros(())
        for micro_step in range(geometry.accumulation):
            loss = loss_function(tokens[list(geometry.samples(0, micro_step))])
            loss = loss * geometry.counts(micro_step) / geometry.accumulation
            loss.backward()
            step_loss += loss.detach()
        computed = time.perf_counter()
        team.agree(Wish.GO_ON)
        all_there = time.perf_counter()
        reduce_gradients(model.parameters(), step_loss, team, geometry.share)
        added = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ended = time.perf_counter()
        waiting, adding = all_there - computed, added - all_there
        made.append(Parts(ended - began, ended - began - waiting - adding, waiting, adding))
    if team.rank == 0:
        medians = {
            name: statistics.median(getattr(parts, name) for parts in made[1:])
            for name in asdict(made[0])
        }
        result.write_text(json.dumps(medians), "utf-8")
    team.agree(Wish.GO_ON)  # nobody ends while another still talks to it


def measured(work: Work, processes: int) -> Parts:
    """The step's parts with so many processes, as rank 0 sees them."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        words = [f"--{name}={value}" for name, value in asdict(work).items()]
        command = [sys.executable, "-m", "bench.processes", "--as_one", str(result), *words]
        if processes > 1:
            launch = (
                "import sys; from app.ranks.launcher import Launcher, Patience; "
                f"sys.exit(Launcher(sys.argv[1:], {processes}, Patience(60, 300)).run())"
            )
            command = [sys.executable, "-c", launch, *command]
        # None of a launcher that may have started this one.
        environment = {n: v for n, v in os.environ.items() if n not in ("RANK", "WORLD_SIZE")}
        environment["OMP_NUM_THREADS"] = "1"
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        return Parts(**json.loads(result.read_text("utf-8")))


def parameters_of(model: str) -> int:
    from app.settings.presets import PRESETS

    return PRESETS[model].parameter_count


def print_foretold(model: str, arguments: argparse.Namespace) -> None:
    """For machines that are not here."""
    n_bytes, computing = FLOAT32 * parameters_of(model), arguments.step_seconds
    print(
        f"{model}: {n_bytes / 1e6:.0f} MB of float32 gradients, {computing:g} s a step on one "
        f"process, {arguments.bandwidth:g} bytes/s, {arguments.latency:g} s a message (foretold)"
    )
    for processes in (2, 4, 8, 16, 64):
        share, faster = foretold(
            n_bytes,
            computing,
            processes,
            arguments.bandwidth,
            arguments.latency,
            arguments.bucket_bytes,
        )
        print(f"{processes:3d} processes: {share:6.1%} adding up, {faster:6.2f} times as fast")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--processes", default="1,2,3,4")
    parser.add_argument("--sequences", type=int, default=12)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seq_len", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--as_one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--foretell", metavar="MODEL")
    parser.add_argument("--step_seconds", type=float, default=1.0)
    parser.add_argument("--bandwidth", type=float, default=12.5e9, help="bytes per second")
    parser.add_argument("--latency", type=float, default=20e-6, help="seconds of a message")
    parser.add_argument("--bucket_bytes", type=float, default=32 * 2**20)
    arguments = parser.parse_args()
    work = Work(
        arguments.model, arguments.sequences, arguments.batch, arguments.seq_len, arguments.steps
    )
    if arguments.as_one:
        work_as_one(work, arguments.as_one)
        return
    if arguments.foretell:
        print_foretold(arguments.foretell, arguments)
        return
    load_before, found = os.getloadavg()[0], {}
    for processes in map(int, arguments.processes.split(",")):
        found[processes] = measured(work, processes)
    first = next(iter(found.values()))
    n_bytes = FLOAT32 * parameters_of(work.model)
    print(
        f"{platform.machine()}, {os.cpu_count()} processors, load {load_before:.1f} before; "
        f"{work.model}, {n_bytes / 1e6:.0f} MB of gradients, {work.sequences} sequences of "
        f"{work.seq_len} tokens a step, one thread each"
    )
    for processes, parts in found.items():
        print(
            f"{processes} processes: step {parts.whole:.3f} s, computing {parts.computing:.3f}, "
            f"waiting {parts.waiting:.3f}, adding up {parts.adding_up:.4f} "
            f"({parts.adding_up / parts.whole:.1%}); {first.whole / parts.whole:.2f} times as fast"
        )
    if arguments.json:
        report = {
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "processors": os.cpu_count(),
            "load_before": load_before,
            "work": asdict(work),
            "gradient_bytes": n_bytes,
            "by_processes": {str(number): asdict(parts) for number, parts in found.items()},
        }
        Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
