"""Save and resume of a local checkpoint, beside reading and hashing the same bytes.

    python bench/restore.py [--folder DIR] [--json results.json]

`hash` reads the files in large pieces and takes their SHA-256, one thread a file: what a
complete verification cannot do without. `verify` is fetch(), `load` restore(), `resume`
both after each other; `save` is commit(), which also syncs to the disk, and `write` the
same bytes written and synced without a hash. The files are in the page cache, as they are
when a job starts again on the same machine. Each runs in turn, in a process of its own
where its peak memory is asked for.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from app.model.smollm2 import SmolLM2
from app.run.committing import commit
from app.run.fetching import fetch
from app.run.layout import CheckpointName
from app.settings.presets import PRESETS
from app.settings.variables import OptimizerSettings
from app.state.progress import Progress
from app.state.random_state import RandomState
from app.state.snapshot import Snapshot, capture, library_versions, restore
from app.stores.contract import Store
from app.stores.opening import open_store
from app.training.optimizer import build_optimizer

NAME = CheckpointName(1, 1)


class OwnLease:
    """The bench is the only writer."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def check(self) -> None: ...

    def put(self, key: str, content: bytes) -> None:
        self._store.put(key, [content])


def trained(preset: str) -> tuple[SmolLM2, torch.optim.Optimizer, Snapshot]:
    """A model with moments, as after a step, and its snapshot."""
    model = SmolLM2(PRESETS[preset])
    model.initialize(1337)
    optimizer = build_optimizer(model, OptimizerSettings(), torch.device("cpu"))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
    optimizer.step()
    optimizer.zero_grad()
    progress = Progress(
        step=1,
        tokens=1,
        train_loss=1.0,
        saved_at=time.time(),
        trainer="torch",
        optimizer=OptimizerSettings().model_dump(),
        versions=library_versions(),
        random=RandomState.capture(),
    )
    return model, optimizer, capture(model, optimizer, progress)


def hash_files(folder: Path) -> None:
    def hash_one(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(hash_one, sorted(folder.iterdir())))


def write_files(snapshot: Snapshot, folder: Path) -> None:
    for name, data in snapshot.files({}).items():
        with (folder / name).open("wb", buffering=0) as file:
            for buffer in data:
                view = memoryview(buffer).cast("B")
                while view:
                    view = view[file.write(view) :]
            os.fsync(file.fileno())


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def resume_in_a_new_process(uri: str, preset: str) -> dict[str, float]:
    """Times of the parts of a resume, and the memory that it adds at its peak, in bytes."""
    command = [sys.executable, __file__, "--resume", uri, "--model", preset]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    parts: dict[str, float] = json.loads(result.stdout)
    return parts


def resume(uri: str, preset: str) -> None:
    model = SmolLM2.empty(PRESETS[preset], torch.device("cpu"))
    optimizer = build_optimizer(model, OptimizerSettings(), torch.device("cpu"))
    store = open_store(uri, "run")
    before = _peak()
    verify = seconds(lambda: fetch(store, NAME, Path()))
    directory = fetch(store, NAME, Path(), only=["state.json"])
    load = seconds(lambda: restore(directory, model, optimizer))
    print(json.dumps({"verify": verify, "load": load, "peak": _peak() - before}))


def _peak() -> int:
    """Of this process alone; getrusage also counts the process that it was forked from."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    line = next(line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m", choices=sorted(PRESETS))
    parser.add_argument("--folder", help="where the checkpoint is written; default: a new one")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--resume", metavar="URI", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.resume:
        resume(arguments.resume, arguments.model)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        report = run(Path(folder), arguments.model, arguments.repeats)
    for name, values in report["seconds"].items():
        runs = ", ".join(f"{value:.2f}" for value in values)
        print(f"{name:8} {statistics.median(values):6.2f} s   of {runs}")
    print(f"memory that resume adds: {statistics.median(report['peak']) / 1e6:,.0f} MB")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def run(folder: Path, preset: str, repeats: int) -> dict[str, Any]:
    print(f"{platform.machine()}, {os.cpu_count()} processors, torch {torch.__version__}, {preset}")
    store = open_store(folder.as_uri(), "run")
    plain = folder / "plain"
    plain.mkdir()
    _, _, snapshot = trained(preset)
    times: dict[str, list[float]] = {}
    peaks: list[float] = []

    def timed(name: str, work: Callable[[], object]) -> None:
        times.setdefault(name, []).append(seconds(work))

    for _ in range(repeats):
        timed("write", lambda: write_files(snapshot, plain))
        timed("save", lambda: commit(store, NAME, snapshot.files({}), 1.0, OwnLease(store)))
        timed("hash", lambda: hash_files(folder / "run" / NAME.key()))
        parts = resume_in_a_new_process(folder.as_uri(), preset)
        peaks.append(parts.pop("peak"))
        for name, value in parts.items():
            times.setdefault(name, []).append(value)
        times.setdefault("resume", []).append(sum(parts.values()))
    return {"model": preset, "seconds": times, "peak": peaks}


if __name__ == "__main__":
    main()
