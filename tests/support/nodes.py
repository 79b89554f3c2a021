"""The machines of a run: nodes of this one over its loopback interface, or namespaces of a network.

Each has a launcher of its own, as a machine has, and its own DATA_DIR.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.job import ROOT, Action, Finished, JobProcess, JobRunner
from tests.support.processes import workers_of


@dataclass(frozen=True)
class PrefixedRunner(JobRunner):
    """Its commands begin with `prefix`, as `ip netns exec NAME`."""

    prefix: Sequence[str] = ()

    def start(self, *arguments: str) -> JobProcess:
        return subprocess.Popen(
            [*self.prefix, sys.executable, "-m", self.module, *arguments],
            cwd=ROOT,
            env=self.whole_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


@dataclass
class Nodes:
    """`processes` has a number for each node. `launchers` are there once the nodes are started."""

    job: JobRunner
    data: Path
    processes: Sequence[int]
    address: str = "127.0.0.1"
    prefixes: list[list[str]] = field(default_factory=list)
    launchers: dict[int, JobProcess] = field(default_factory=dict)
    module: str = "app"  # or torchrun, which is told in `words` what to run
    words: Sequence[str] = ("train",)

    def node(self, number: int, port: int, **changes: str) -> JobRunner:
        return PrefixedRunner(
            {
                **self.job.environment,
                "DATA_DIR": str(self.data / f"node-{number}"),
                "DEVICES": str(self.processes[number]),
                "NUM_NODES": str(len(self.processes)),
                "NODE_RANK": str(number),
                "MASTER_ADDR": self.address,
                "MASTER_PORT": str(port),
                **changes,
            },
            self.module,
            prefix=self.prefixes[number] if self.prefixes else (),
        )

    def run(
        self,
        when: Mapping[str, Action] | None = None,
        changes: Mapping[int, Mapping[str, str]] | None = None,
    ) -> list[Finished]:
        """`train` on all nodes until they have ended; `when` reads the log of node 0."""
        port, changes = free_port(), changes or {}

        def ended(number: int) -> Finished:
            runner = self.node(number, port, **changes.get(number, {}))
            torchrun = ("--node-rank", str(number), "--master-port", str(port))
            return runner.run(
                *(torchrun if self.module != "app" else ()),
                *self.words,
                when=when if number == 0 else None,
                begin=lambda process: self.launchers.__setitem__(number, process),
            )

        with ThreadPoolExecutor(len(self.processes)) as pool:
            return list(pool.map(ended, range(len(self.processes))))

    def workers(self, number: int) -> dict[int, int]:
        """The process id of each process of that node, by its number there."""
        return workers_of(self.launchers[number].pid)


@dataclass
class Deed:
    """Does something to the nodes when a line of the log appears; remembers who was there."""

    nodes: Nodes
    act: Callable[[Nodes], None]
    pids: dict[int, int] = field(default_factory=dict)
    at: float = 0.0

    def __call__(self, process: JobProcess) -> None:
        self.at = time.monotonic()
        for number in self.nodes.launchers:
            workers = self.nodes.workers(number)
            self.pids |= {100 * number + local: pid for local, pid in workers.items()}
        self.act(self.nodes)


def kill_worker(node: int, local_rank: int) -> Callable[[Nodes], None]:
    return lambda nodes: os.kill(nodes.workers(node)[local_rank], signal.SIGKILL)


def kill_node(node: int) -> Callable[[Nodes], None]:
    """All of its processes at once, as where a machine loses its power but for its network."""

    def act(nodes: Nodes) -> None:
        for pid in (nodes.launchers[node].pid, *nodes.workers(node).values()):
            os.kill(pid, signal.SIGKILL)

    return act


def ask_node(node: int, number: signal.Signals = signal.SIGTERM) -> Callable[[Nodes], None]:
    return lambda nodes: nodes.launchers[node].send_signal(number)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
