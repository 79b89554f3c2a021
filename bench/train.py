"""Training speed, side by side: this job, `transformers` in a plain loop, its Trainer, litgpt.

    python -m bench.train                                  # CPU: 135M, 2 x 1,024 tokens
    python -m bench.train --micro_batch 8,16,32            # GPU: a sweep
    python -m bench.train --only ours-torch,hf-eager --rounds 5 --json out.json --plot out.svg

Every candidate sees the same tokens of real text in the same order, in the same precision,
with AdamW (fused) and clipping at 1; all but litgpt start from the same weights. Each runs
as a process of its own, in turn, `--rounds` times over; what is printed are medians over the
rounds, and ratios inside each round. The first step (import, compilation) is reported by
itself and left out of the speed. What does not install here is said and left out.

FLOP per token: 6 N + 6 L D T, N = 134,515,008 with the tied embedding once (PaLM,
appendix B), causal attention counted once; MFU is against the datasheet's dense bf16 peak.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parent.parent
OURS = {"ours-torch": "torch", "ours-lightning": "lightning"}
CANDIDATES = (*OURS, "hf-eager", "hf-compiled", "hf-trainer", "litgpt")
PACKAGES = ("torch", "pytorch-lightning", "transformers", "accelerate", "litgpt")


@dataclass(frozen=True)
class Shape:
    """What is trained on, the same for everyone. `steps` are timed, one more is not."""

    model: str
    micro_batch: int
    seq_len: int
    steps: int
    device: str
    precision: str
    compile: bool

    @property
    def tokens_per_step(self) -> int:
        return self.micro_batch * self.seq_len


@dataclass(frozen=True)
class Result:
    """One candidate in one round. Seconds, bytes; the speed is the median over the steps."""

    tokens_per_second: float
    first_step_seconds: float
    peak_bytes: int
    last_loss: float


class NotInstalled(Exception):
    """The candidate's packages are not here."""


def measure(candidate: str, shape: Shape, folder: Path) -> Result:
    """Run one candidate in a process of its own."""
    return Result(**json.loads(run(candidate, shape, folder)))


def run(candidate: str, shape: Shape, folder: Path) -> str:
    """The last line that a process of `bench.candidates` prints."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "HF_")) and name not in ("MODEL", "DATASET", "RUN_NAME")
    }
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    command = [sys.executable, "-m", "bench.candidates", candidate, json.dumps(asdict(shape))]
    done = subprocess.run(
        [*command, str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 3:
        raise NotInstalled(done.stdout.strip())
    if done.returncode != 0:
        raise RuntimeError(f"{candidate} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout.splitlines()[-1]


def summary(
    results: Mapping[str, Sequence[Result]], shape: Shape, peak: float | None
) -> dict[str, dict[str, float]]:
    """Medians of each candidate, and of its ratios to the first one round by round.

    `peak` in FLOP/s, where it is known.
    """
    from app.model.smollm2 import flops_per_token
    from app.settings.presets import PRESETS

    config = PRESETS[shape.model]
    causal = flops_per_token(config, shape.seq_len)
    full = flops_per_token(config, shape.seq_len, causal=False)
    reference = next(iter(results.values()))
    table = {}
    for name, rounds in results.items():
        speed = statistics.median(r.tokens_per_second for r in rounds)
        ratios = [
            a.tokens_per_second / b.tokens_per_second
            for a, b in zip(reference, rounds, strict=True)
        ]
        table[name] = {
            "tokens_per_second": speed,
            "tflops": speed * causal / 1e12,
            "peak_gb": max(r.peak_bytes for r in rounds) / 1e9,
            "first_step_cold_seconds": rounds[0].first_step_seconds,
            "first_step_warm_seconds": statistics.median(
                r.first_step_seconds for r in rounds[1:] or rounds
            ),
            "reference_is_faster_by": statistics.median(ratios),
        }
        if peak:
            table[name] |= {"mfu_causal": speed * causal / peak, "mfu_full": speed * full / peak}
    return table


def show(table: Mapping[str, Mapping[str, float]]) -> None:
    columns = list(next(iter(table.values())))
    print(f"{'':<16}" + "".join(f"{column:>26}" for column in columns))
    for name, row in table.items():
        print(f"{name:<16}" + "".join(f"{row[column]:>26,.3f}" for column in columns))


def plot(tables: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """An SVG of bars: tokens per second."""
    rows = [
        (f"{name} {shape}", row) for shape, table in tables.items() for name, row in table.items()
    ]
    longest = max(row["tokens_per_second"] for _, row in rows)
    lines = []
    for index, (name, row) in enumerate(rows):
        y, speed = 10 + 26 * index, row["tokens_per_second"]
        width = 380 * speed / longest
        lines.append(f'<text x="210" y="{y + 15}" text-anchor="end">{name}</text>')
        lines.append(f'<rect x="220" y="{y}" width="{width:.1f}" height="20" fill="#4878a8"/>')
        lines.append(f'<text x="{226 + width:.1f}" y="{y + 15}">{speed:,.0f} tokens/s</text>')
    size = f'width="760" height="{20 + 26 * len(rows)}"'
    style = 'font-family="sans-serif" font-size="13" fill="#444"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{"".join(lines)}</svg>\n'


def machine() -> dict[str, str]:
    import torch

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    cpu = torch.cpu.get_capabilities()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": f"{cpu.get('cpu_name') or platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "load": f"{os.getloadavg()[0]:.1f} when it began",
        **versions,
    }


def compare(
    names: Sequence[str], shape: Shape, rounds: int, folder: Path
) -> dict[str, list[Result]]:
    run("tokens", shape, folder)  # made once, and in nobody's memory
    results: dict[str, list[Result]] = {name: [] for name in names}
    for number in range(rounds):
        for name in [name for name in names if name in results]:
            try:
                result = measure(name, shape, folder)
            except NotInstalled as error:
                print(f"{name}: not measured, {error}", flush=True)
                del results[name]
                continue
            results[name].append(result)
            print(
                f"round {number + 1}: {name} {result.tokens_per_second:,.1f} tokens/s, "
                f"{result.peak_bytes / 1e9:.2f} GB, first step after "
                f"{result.first_step_seconds:.1f} s, loss {result.last_loss:.4f}",
                flush=True,
            )
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"))
    parser.add_argument("--micro_batch", help="one or several, with commas")
    parser.add_argument("--seq_len", type=int)
    parser.add_argument("--steps", type=int, help="timed steps in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--compile", action="store_true", help="our own: on a CPU it is off by default"
    )
    parser.add_argument("--only", default=",".join(CANDIDATES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()

    from app.settings.variables import ComputeSettings
    from app.training.compute import resolve_compute

    chosen = {"device": arguments.device or "auto", "precision": arguments.precision or "auto"}
    compute = resolve_compute(ComputeSettings(**chosen))  # type: ignore[arg-type]
    cuda = compute.device.type == "cuda"
    names = [name for name in arguments.only.split(",") if name in CANDIDATES]
    about = machine()
    print("\n".join(f"{key}: {value}" for key, value in about.items()), flush=True)
    tables, raw = {}, {}
    for micro_batch in (arguments.micro_batch or ("8,16,32,64" if cuda else "2")).split(","):
        shape = Shape(
            model=arguments.model,
            micro_batch=int(micro_batch),
            seq_len=arguments.seq_len or (2048 if cuda else 1024),
            steps=arguments.steps or (20 if cuda else 3),
            device=compute.device.type,
            precision=compute.precision,
            compile=arguments.compile or cuda,
        )
        key = f"{micro_batch} x {shape.seq_len}"
        print(f"\n{shape.model}, {key} tokens, {shape.precision}", flush=True)
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            results = compare(names, shape, arguments.rounds, Path(folder))
        tables[key] = summary(results, shape, compute.peak_flops)
        raw[key] = {name: [asdict(r) for r in rounds] for name, rounds in results.items()}
        show(tables[key])
    if arguments.json:
        content = {"machine": about, "tables": tables, "rounds": raw, "arguments": sys.argv[1:]}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    if arguments.plot:
        arguments.plot.write_text(plot(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
