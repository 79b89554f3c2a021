"""Seconds until the light commands have answered, and until the heavy parts are imported.

    python bench/startup.py [--repeats 5] [--json results.json]

`checkpoints list` reads a run with one checkpoint in a folder; with CHECKPOINT_URI set to a
bucket, name a run of it by RUN_NAME and it reads that. One run of each is not counted, so the
files are in the page cache; the runs take turns.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
APP = ("-m", "app")
CASES = {
    "--help": (*APP, "--help"),
    "config": (*APP, "config"),
    "checkpoints list": (*APP, "checkpoints", "list"),
    "import torch": ("-c", "import torch"),
    "import app.training.start": ("-c", "import app.training.start"),
    "import app.training.train_torch": (
        "-c",
        "import app.training.start, app.training.train_torch",
    ),
    "import app.training.train_lightning": (
        "-c",
        "import app.training.start, app.training.train_lightning",
    ),
}
MAKE_RUN = """
import sys
from app.run.committing import commit
from app.run.layout import CheckpointName
from app.run.record import create_record
from app.state.identity import Identity
from app.stores.opening import open_store

class OwnLease:
    def check(self): pass
    def put(self, key, content): store.put(key, [content])

store = open_store(sys.argv[1], "tiny")
identity = dict.fromkeys(Identity.model_fields, "bench")
identity |= {"shape": {}, "seq_len": 1, "global_batch_size": 1, "seed": 1}
create_record(store, "tiny", Identity(**identity), 20)
commit(store, CheckpointName(20, 1), {"state.json": [b"{}"]}, 1.0, OwnLease())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    wall: dict[str, list[float]] = {name: [] for name in CASES}
    cpu: dict[str, list[float]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        environment = {"CHECKPOINT_URI": Path(folder).as_uri(), **os.environ}
        if "CHECKPOINT_URI" not in os.environ:
            uri = environment["CHECKPOINT_URI"]
            subprocess.run([sys.executable, "-c", MAKE_RUN, uri], cwd=ROOT, check=True)
        for turn in range(arguments.repeats + 1):
            for name, command in CASES.items():
                before, started = os.times(), time.perf_counter()
                subprocess.run(
                    [sys.executable, *command],
                    cwd=ROOT,
                    env=environment,
                    stdout=subprocess.DEVNULL,
                    check=True,
                )
                seconds, after = time.perf_counter() - started, os.times()
                if turn:
                    wall[name].append(seconds)
                    user = after.children_user - before.children_user
                    cpu[name].append(user + after.children_system - before.children_system)
    print(f"{platform.machine()}, {os.cpu_count()} processors, python {platform.python_version()}")
    for name in CASES:
        print(
            f"{name:28} wall {statistics.median(wall[name]):5.2f} s   "
            f"processor {statistics.median(cpu[name]):5.2f} s"
        )
    if arguments.json:
        report = {"wall": wall, "cpu": cpu}
        Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
