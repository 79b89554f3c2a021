"""Kill the job anywhere, start it again, and compare with a run that was never killed.

    python -m tests.drills.kill_anywhere --store local --kills 50 --seed 1
    python -m tests.drills.kill_anywhere --store s3 --kills 2000          # moto, for hours
    python -m tests.drills.kill_anywhere --store seaweedfs --zombies      # paused, not killed

Each attempt is a process that ends itself with SIGKILL at a failpoint
(tests/support/failpoints.py), or is killed from outside after a random time. Runs that reach
their target are compared with the reference (every weight, moment and row, bit for bit) and
verified, and the next run begins; so is the last one, which is not killed again.

A seed draws the same kinds of kills again, not the same instants: a machine's speed decides
which checkpoints are saved, when the lease is renewed, and which part of an upload is sent first.

Attempts are forked from a process that has imported torch, so that one takes a second.
They compute on one thread: a pool of threads does not survive a fork, and several would
wait for each other on a busy machine.
"""

import argparse
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
import torch
import torch._dynamo

from app.cli.parser import main as job
from app.run.layout import CHECKPOINTS
from app.stores.contract import Store
from app.stores.opening import open_store
from tests.support.failpoints import KINDS, OPERATIONS, ZOMBIES, DeadlyStore, Failpoint
from tests.support.job import ROOT, outcome
from tests.support.seaweedfs import KEY, seaweedfs
from tests.support.small_job import make_tokenizer, small_job

TOTAL_STEPS, EVERY = 8, 2
FINISHED, FENCED, KILLED, HUNG = 0, 79, -signal.SIGKILL, -1000
HANG_SECONDS = 300  # an attempt takes seconds, and a minute on a busy machine
_LATEST_INSTANT = 4.0  # seconds after the start of an attempt
_TRIES = 20

Kill = Failpoint | float
"""Where an attempt is killed, or after how many seconds."""


class Wrong(Exception):
    """What must not happen, with the end of the log."""


@dataclass(frozen=True)
class Arena:
    """Where the attempts happen: variables of the job, store URI, and a folder for logs."""

    environment: dict[str, str]
    uri: str
    folder: Path

    def attempt(self, run: str, kill: Kill | None = None) -> int:
        """One attempt of `run`: its exit code, or minus the signal that ended it."""
        if isinstance(kill, float):
            return self.in_child(run, self.training(None), kill)
        return self.in_child(run, self.training(kill))

    def training(self, failpoint: Failpoint | None) -> Callable[[], int]:
        """The train command, over a store with a failpoint."""

        def train() -> int:
            if failpoint is None:
                return job(["train"])

            def deadly(uri: str, run_name: str) -> DeadlyStore:
                return DeadlyStore(open_store(uri, run_name), failpoint)

            with mock.patch("app.training.groundwork.open_store", deadly):
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

    def make_reference(self) -> None:
        code = self.attempt("reference")
        if code != FINISHED:
            raise self.wrong("reference", f"ended with {code}")

    def wrong(self, run: str, what: str) -> Wrong:
        log = (self.folder / f"{run}.log").read_text("utf-8")[-6000:]
        return Wrong(f"{run} {what}\n{log}")

    def store(self, run: str) -> Store:
        os.environ.update(self.environment)
        return open_store(self.uri, run)


def compare(arena: Arena, run: str) -> int:
    """Print what differs between a run and the reference, and return 1; nothing should.

    A run that is the same is removed.
    """
    store = arena.store(run)
    problems = outcome(store).differences(outcome(arena.store("reference")))
    problems += [half.key for half in store.half_written() if half.folder.startswith(CHECKPOINTS)]
    if job(["checkpoints", "verify"]) != FINISHED:
        problems.append("checkpoints verify")
    if not problems:
        forget(store)
    print("\n".join(f"DIFFERS: {problem}" for problem in problems))
    return 1 if problems else FINISHED


def forget(store: Store) -> None:
    """The runs of hours, and what their uploads left half, would fill disk and memory."""
    store.delete([info.key for info in store.list("")])
    for half in store.half_written():
        store.discard(half)


def zombies(arena: Arena, seed: int) -> None:
    """Pause an attempt at each kind of operation, let a successor finish, and wake it up.

    The zombie has to end as fenced, and to change nothing. Raises Wrong.
    """
    draw = random.Random(seed)
    arena.make_reference()
    for category in ZOMBIES:
        # A short attempt renews once or twice; the small files of the first upload go first.
        at = draw.randint(1, {"renewal": 2, "upload": 24}.get(category, 4))
        paused = Failpoint(category, at, signal.SIGSTOP)
        run = f"zombie-{category}"
        zombie = arena.fork(run, arena.training(paused))
        _, status = os.waitpid(zombie, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            raise arena.wrong(run, f"never came to operation {at}")
        successor = arena.attempt(run)
        os.kill(zombie, signal.SIGCONT)
        _, status = os.waitpid(zombie, 0)
        code = os.waitstatus_to_exitcode(status)
        same = arena.in_child(run, lambda run=run: compare(arena, run))  # type: ignore[misc]
        print(f"zombie {paused}: exit {code}, successor {successor}, differs {same}", flush=True)
        if (successor, code, same) != (FINISHED, FENCED, FINISHED):
            raise arena.wrong(run, "is not as it should be")


@dataclass
class Hunt:
    """Attempts of one run after the other."""

    arena: Arena
    compared: int = 0

    @property
    def run(self) -> str:
        return f"run-{self.compared + 1}"

    def killed(self, kill: Kill | None) -> bool:
        """Whether the next attempt was. A run that finished is compared. Raises Wrong."""
        run = self.run
        code = self.arena.attempt(run, kill)
        if code == KILLED and kill is not None:
            return True
        if code == FINISHED:
            code = self.arena.in_child(run, lambda: compare(self.arena, run))
        if code != FINISHED:
            raise self.arena.wrong(run, "hung" if code == HUNG else f"ended with {code}")
        self.compared += 1
        return False

    def kill(self, kind: str, draw: random.Random) -> Kill:
        """Attempt, until one is killed at an operation of that kind: how it was. Raises Wrong."""
        reach = OPERATIONS.get(kind, 0)
        for _ in range(_TRIES):
            kill: Kill = draw.uniform(0.1, _LATEST_INSTANT)
            if kind in OPERATIONS:
                kill = Failpoint(kind, draw.randint(1, reach))
            if self.killed(kill):
                return kill
            reach = max(1, reach // 2)  # the attempt finished before
        raise Wrong(f"{_TRIES} attempts finished before any operation of kind {kind}")


def kinds(draw: random.Random) -> Iterator[str]:
    """In rounds, each in an order of its own, so that no kind is left out."""
    while True:
        yield from draw.sample(KINDS, len(KINDS))


def kill_anywhere(arena: Arena, kills: int, seed: int) -> None:
    """Kill `kills` attempts, and let the last run finish. Raises Wrong."""
    draw = random.Random(seed)
    arena.make_reference()
    hunt, fell = Hunt(arena), Counter[str]()
    for kind in itertools.islice(kinds(draw), kills):
        kill = hunt.kill(kind, draw)
        fell[kind] += 1
        where = f"after {kill:.2f} s" if isinstance(kill, float) else kill
        print(f"kill {fell.total()}: {hunt.run}, {where}", flush=True)
    hunt.killed(None)
    print(", ".join(f"{count} {kind}" for kind, count in fell.items()))
    print(f"{fell.total()} kills, {hunt.compared} finished runs equal the reference", flush=True)


@contextmanager
def s3_server(kind: str, folder: Path) -> Iterator[dict[str, str]]:
    """An S3 server in a process of its own, with a bucket in it: variables of the job."""
    with moto(folder) if kind == "s3" else seaweedfs(folder / "seaweedfs") as endpoint:
        environment = {
            "AWS_ENDPOINT_URL_S3": endpoint,
            "AWS_ACCESS_KEY_ID": KEY[0],
            "AWS_SECRET_ACCESS_KEY": KEY[1],
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        os.environ.update(environment)
        client: Any = boto3.session.Session().client("s3")
        client.create_bucket(Bucket="bucket")
        yield environment


@contextmanager
def moto(folder: Path) -> Iterator[str]:
    """URL of the S3 server of the tests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "tests/support/s3server.py", str(port)]
    with (folder / "s3.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if time.monotonic() > deadline:
                raise RuntimeError((folder / "s3.log").read_text())
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", choices=("local", "s3", "seaweedfs"), default="local")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--zombies", action="store_true", help="pause and wake instead of killing")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 100_000)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, store {arguments.store}", flush=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="kill-anywhere-") as name:
        folder = Path(name)
        make_tokenizer(folder / "tokenizer")
        environment = {
            **small_job(folder, folder / "tokenizer"),
            "TRAINER": "torch",
            "TOTAL_STEPS": str(TOTAL_STEPS),
            "CHECKPOINT_EVERY_STEPS": str(EVERY),
            "KEEP_TOP": "1",
            "LEASE_TTL": "2",
        }
        with ExitStack() as servers:
            uri = f"file://{folder}/store"
            if arguments.store != "local":
                uri = "s3://bucket/prefix"
                environment |= servers.enter_context(s3_server(arguments.store, folder))
            arena = Arena(environment, uri, folder)
            try:
                if arguments.zombies:
                    zombies(arena, arguments.seed)
                else:
                    kill_anywhere(arena, arguments.kills, arguments.seed)
            except Wrong as wrong:
                print(f"PROBLEM (seed {arguments.seed}): {wrong}")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
