"""Speed and peak memory of `python -m app prepare --all`, by the size of the text.

    python -m bench.prepare --folder /tmp/bench-prepare --json docs/benchmarks/prepare.json

Each size is prepared once, into a folder of its own, whose tokens are removed before, and
stopped after LIMIT seconds. The tokenizer lies ready, as in the image. The runs are added to
those in the file. FOLDER/0.25 is a folder for bench/data.py, too.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from app.errors import Preempted
from bench.text import write_text

ROOT = Path(__file__).parent.parent
PREPARE = (sys.executable, "-m", "app", "prepare")


@dataclass(frozen=True)
class Prepared:
    """One run of the command. `peak_mib` is the most memory that its process ever held;
    `complete` is False where it was stopped on the way."""

    text_bytes: int
    training_tokens: int
    complete: bool
    seconds: float
    cpu_seconds: float
    peak_mib: float
    load: float

    def row(self) -> str:
        return (
            f"| {self.text_bytes / 1e9:.2f} GB | {'' if self.complete else 'the first '}"
            f"{self.training_tokens:,} | {self.seconds:,.0f} s "
            f"| {self.training_tokens / self.cpu_seconds:,.0f} | {self.peak_mib:,.0f} MiB |"
        )


def prepare(folder: Path, limit: float) -> Prepared:
    corpus, tokenizer = folder / "corpus.jsonl", folder / "tokenizer"
    subprocess.run(
        [*PREPARE, "--tokenizer_only", str(tokenizer)], cwd=ROOT, stdout=sys.stderr, check=True
    )
    shutil.rmtree(folder / "tokens", ignore_errors=True)
    settings = {"DATASET": corpus, "DATA_DIR": folder, "TOKENIZER": tokenizer}
    started = time.perf_counter()
    process = subprocess.Popen(
        [*PREPARE, "--all"],
        cwd=ROOT,
        env={**os.environ, **{name: str(value) for name, value in settings.items()}},
        stdout=sys.stderr,
    )
    stopping = threading.Timer(limit, process.terminate)
    stopping.start()
    # The usage of this child alone. Its peak counts from this process's own: a small one.
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    stopping.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in {0, Preempted.exit_code}:
        raise SystemExit(f"prepare ended with {process.returncode}")
    (path,) = (folder / "tokens").glob("*/index.json")
    index = json.loads(path.read_text())
    return Prepared(
        text_bytes=corpus.stat().st_size,
        training_tokens=sum(seal["train"]["tokens"] for seal in index["seals"] if seal["train"]),
        complete=index["complete"],
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_mib=usage.ru_maxrss / 1024,
        load=os.getloadavg()[0],
    )


def add(path: Path, result: Prepared) -> None:
    run = {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **asdict(result),
    }
    runs = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([*runs, run], indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.03, 0.25, 3.0])
    parser.add_argument("--limit", type=float, default=600.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print("| text | training tokens | time | tokens per second of CPU | peak memory |")
    print("|---|---|---|---|---|")
    for gigabytes in arguments.gigabytes:
        folder = arguments.folder / f"{gigabytes:g}"
        write_text(folder / "corpus.jsonl", int(gigabytes * 1e9))
        result = prepare(folder, arguments.limit)
        print(result.row(), flush=True)
        if arguments.json:
            add(arguments.json, result)


if __name__ == "__main__":
    main()
