"""Kill the job anywhere, start it again, and compare with a run that was never killed.

    python -m tests.kill_anywhere --store local --kills 50 --seed 1
    python -m tests.kill_anywhere --store s3 --kills 2000        # for hours
    python -m tests.kill_anywhere --store s3 --zombies           # paused, not killed

Each attempt is a process that ends itself with SIGKILL at a failpoint: at an operation
of its store, before it, after it, or between two buffers of an upload; or it is killed
from outside after a random time. The failpoints are in a wrapper round the store, here,
and not in the product. Runs that reach their target are compared with the reference
(every weight, moment and row, bit for bit) and verified, and the next run begins.

Attempts are forked from a process that has imported torch, so that one takes a second.
They compute on one thread: a pool of threads does not survive a fork, and several would
wait for each other on a busy machine.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch._dynamo

import app.commands
import app.start
import app.train_torch  # noqa: F401 - imported once here, and not in each attempt
from app.cli import main as job
from app.stores import Data, Store, open_store
from tests.job import ROOT, outcome

TOTAL_STEPS, EVERY = 10, 2
# The kinds of operations, and about how many of each there are in an attempt.
OPERATIONS = {
    "data": 80,
    "manifest": 10,
    "pointer": 10,
    "logs": 10,
    "prune": 8,
    "lease": 6,
    "record": 2,
}
FINISHED, FENCED, KILLED, HUNG = 0, 79, -signal.SIGKILL, -1000
HANG_SECONDS = 300  # an attempt takes seconds, and a minute on a busy machine


@dataclass
class Failpoint:
    """Die, or be paused, at occurrence number `at` of an operation of `category`.

    `writing` is held during conditional writes. A pause waits for it: one that came while
    another thread holds the volume's own lock would keep every successor out, with exit 75.
    Pauses count from the attempt's first write of its own on: who wakes up before it finds
    the run finished, and has nothing to do.
    """

    category: str
    at: int
    number: signal.Signals = signal.SIGKILL
    writing: Any = field(default_factory=threading.RLock)
    begun: bool = False

    def __str__(self) -> str:
        return f"at operation {self.at} of kind {self.category}"

    def reached(self, category: str) -> None:
        self.begun |= category == "data"
        if category == self.category and (self.begun or self.number == signal.SIGKILL):
            self.at -= 1
            if self.at == 0 and self.number == signal.SIGSTOP:
                with self.writing:  # the process stops late if another thread gets the signal
                    signal.pthread_kill(threading.get_ident(), self.number)
            elif self.at == 0:
                os.kill(os.getpid(), self.number)


class DeadlyData(Sequence[bytes | memoryview]):
    """Buffers of an upload; to ask for each of them is an operation."""

    def __init__(self, data: Data, failpoint: Failpoint) -> None:
        self._data, self._failpoint = data, failpoint

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: Any) -> Any:
        self._failpoint.reached("data")
        return self._data[index]

    def __iter__(self) -> Iterator[bytes | memoryview]:
        for buffer in self._data:
            self._failpoint.reached("data")
            yield buffer


class DeadlyStore:
    """A store in front of another one, in which every write can be the last."""

    def __init__(self, store: Store, failpoint: Failpoint) -> None:
        self._store, self._failpoint = store, failpoint

    def put(self, key: str, data: Data) -> None:
        category = category_of(key)
        self._failpoint.reached(category)
        self._store.put(key, DeadlyData(data, self._failpoint) if category == "data" else data)
        self._failpoint.reached(category)

    def put_if_absent(self, key: str, content: bytes) -> str | None:
        return self._around(key, lambda: self._store.put_if_absent(key, content))

    def put_if_match(self, key: str, content: bytes, etag: str) -> str | None:
        return self._around(key, lambda: self._store.put_if_match(key, content, etag))

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._failpoint.reached("prune")
            self._store.delete([key])
        self._failpoint.reached("prune")

    def _around(self, key: str, write: Callable[[], str | None]) -> str | None:
        self._failpoint.reached(category_of(key))
        with self._failpoint.writing:
            etag = write()
        self._failpoint.reached(category_of(key))
        return etag

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def category_of(key: str) -> str:
    names = {
        "LATEST": "pointer",
        "lease.json": "lease",
        "run.json": "record",
        "source.json": "record",
    }
    if key in names:
        return names[key]
    if key.startswith("logs/"):
        return "logs"
    return "manifest" if key.endswith("/manifest.json") else "data"


@dataclass(frozen=True)
class Arena:
    """Where the attempts happen: variables of the job, store URI, and a folder for logs."""

    environment: dict[str, str]
    uri: str
    folder: Path

    def attempt(self, run: str, failpoint: Failpoint | None, die_after: float | None) -> int:
        """One attempt of `run`: its exit code, or minus the signal that ended it."""
        return self.in_child(run, self.training(failpoint), die_after)

    def training(self, failpoint: Failpoint | None) -> Callable[[], int]:
        """The train command, over a store with a failpoint."""

        def train() -> int:
            if failpoint is None:
                return job(["train"])

            def deadly(uri: str, run_name: str) -> DeadlyStore:
                return DeadlyStore(open_store(uri, run_name), failpoint)

            with mock.patch("app.start.open_store", deadly):
                return job(["train"])

        return train

    def in_child(self, run: str, work: Callable[[], int], die_after: float | None = None) -> int:
        """Fork, and do `work` with the variables of `run`. Its output goes to <run>.log."""
        child = self.fork(run, work)
        hung = threading.Event()

        def kill() -> None:
            if die_after is None:
                hung.set()
            os.kill(child, signal.SIGKILL)

        timer = threading.Timer(die_after or HANG_SECONDS, kill)
        timer.start()
        _, status = os.waitpid(child, 0)
        timer.cancel()
        timer.join()
        return HUNG if hung.is_set() else os.waitstatus_to_exitcode(status)

    def fork(self, run: str, work: Callable[[], int]) -> int:
        """The process id of a child that does `work`."""
        child = os.fork()
        if child == 0:
            code = 1
            try:
                log = os.open(self.folder / f"{run}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(log, 1)
                os.dup2(log, 2)
                os.environ.update(self.environment, RUN_NAME=run, CHECKPOINT_URI=self.uri)
                code = work()
            except BaseException:  # noqa: BLE001 - a fork must never return
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        return child

    def store(self, run: str) -> Store:
        os.environ.update(self.environment)
        return open_store(self.uri, run)


def compare(arena: Arena, run: str) -> int:
    """Print what differs between a run and the reference, and return 1; nothing should."""
    problems = outcome(arena.store(run)).differences(outcome(arena.store("reference")))
    if job(["checkpoints", "verify"]) != FINISHED:
        problems.append("checkpoints verify")
    print("\n".join(f"DIFFERS: {problem}" for problem in problems))
    return 1 if problems else FINISHED


def zombies(arena: Arena, seed: int) -> str | None:
    """Pause an attempt at each kind of operation, let a successor finish, and wake it up.

    What went wrong, if anything did: the zombie has to end as fenced, and to change nothing.
    """
    draw = random.Random(seed)
    code = arena.attempt("reference", None, None)
    if code != FINISHED:
        return f"the reference ended with {code}"
    for category in ("data", "manifest", "pointer", "logs", "prune", "lease"):
        at = draw.randint(1, 2 if category == "lease" else 4)  # a short attempt renews it once
        paused = Failpoint(category, at, signal.SIGSTOP)
        run = f"zombie-{category}"
        zombie = arena.fork(run, arena.training(paused))
        _, status = os.waitpid(zombie, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            return f"{run} never came to operation {at}"
        successor = arena.attempt(run, None, None)
        os.kill(zombie, signal.SIGCONT)
        _, status = os.waitpid(zombie, 0)
        code = os.waitstatus_to_exitcode(status)
        same = arena.in_child(run, lambda run=run: compare(arena, run))  # type: ignore[misc]
        print(f"zombie {paused}: exit {code}, successor {successor}, differs {same}", flush=True)
        if (successor, code, same) != (FINISHED, FENCED, FINISHED):
            return (arena.folder / f"{run}.log").read_text("utf-8")[-6000:]
    return None


def kill_anywhere(arena: Arena, kills: int, seed: int) -> str | None:
    """Kill `kills` attempts; what went wrong, if anything did."""
    draw = random.Random(seed)
    code = arena.attempt("reference", None, None)
    done, compared, run = 0, 0, "reference"
    while code in (FINISHED, KILLED) and done < kills:
        run, failpoint, die_after = f"run-{compared + 1}", None, None
        if draw.random() < 0.75:
            category = draw.choice(list(OPERATIONS))
            failpoint = Failpoint(category, draw.randint(1, OPERATIONS[category]))
        else:
            die_after = draw.uniform(0.1, 4.0)
        code = arena.attempt(run, failpoint, die_after)
        if code == KILLED:
            done += 1
            where = f"after {die_after:.2f} s" if die_after else failpoint
            print(f"kill {done}: {run}, {where}", flush=True)
        elif code == FINISHED:
            code = arena.in_child(run, lambda run=run: compare(arena, run))  # type: ignore[misc]
            compared += 1
    print(f"{done} kills, {compared} finished runs equal the reference", flush=True)
    if code in (FINISHED, KILLED):
        return None
    log = (arena.folder / f"{run}.log").read_text("utf-8")[-3000:]
    return f"{run} {'hung' if code == HUNG else f'ended with {code}'}\n{log}"


def s3_server(folder: Path) -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    """The S3 server of the tests in a process of its own, with a bucket in it."""
    import socket

    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (folder / "s3.log").open("wb")
    command = [sys.executable, "tests/s3server.py", str(port)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    environment = {
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    os.environ.update(environment)
    deadline = time.monotonic() + 60
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        if time.monotonic() > deadline:
            raise RuntimeError((folder / "s3.log").read_text())
    client: Any = boto3.session.Session().client("s3")
    client.create_bucket(Bucket="bucket")
    return server, environment


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", choices=("local", "s3"), default="local")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--zombies", action="store_true", help="pause and wake instead of killing")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 100_000)
    parser.add_argument("--job", type=json.loads, required=True, help="variables, as JSON")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, store {arguments.store}", flush=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="kill-anywhere-") as name:
        folder = Path(name)
        environment = {
            **arguments.job,
            "TRAINER": "torch",
            "TOTAL_STEPS": str(TOTAL_STEPS),
            "CHECKPOINT_EVERY_STEPS": str(EVERY),
            "KEEP_TOP": "1",
            "LEASE_TTL": "2",
        }
        server = None
        uri = f"file://{folder}/store"
        if arguments.store == "s3":
            uri = "s3://bucket/prefix"
            server, extra = s3_server(folder)
            environment |= extra
        try:
            arena = Arena(environment, uri, folder)
            if arguments.zombies:
                problem = zombies(arena, arguments.seed)
            else:
                problem = kill_anywhere(arena, arguments.kills, arguments.seed)
        finally:
            if server is not None:
                server.kill()
                server.wait()
    if problem:
        print(f"PROBLEM (seed {arguments.seed}): {problem}")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
