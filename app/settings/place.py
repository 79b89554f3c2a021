"""Where this process stands among those that train a run together, and who has started it.

Read from the environment: what torchrun, and the job's own launcher, say to each process that they
start, and the names under which other launchers give the variables of `ProcessSettings`. A node is
one machine of those that train the run, or a pod or container in its place.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from app.errors import ConfigError

# Torchrun's own names, which Kubeflow Trainer sets too, and ours.
_OTHER_NAMES = {
    "PET_NNODES": "NUM_NODES",
    "PET_NPROC_PER_NODE": "DEVICES",
    "PET_NODE_RANK": "NODE_RANK",
    "PET_MASTER_ADDR": "MASTER_ADDR",
    "PET_MASTER_PORT": "MASTER_PORT",
}
_JOB_INDEX = "JOB_COMPLETION_INDEX"  # of an Indexed Job of Kubernetes

# Each of these tells a process in its own way how many of its kind were started.
_FOREIGN_LAUNCHERS = {
    "SLURM_STEP_NUM_TASKS": "srun, or with --ntasks=1",  # SLURM_NTASKS is set in a batch script too
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpiexec",
    "MV2_COMM_WORLD_SIZE": "mpirun",
    "JSM_NAMESPACE_SIZE": "jsrun",
}
# What the first process says to the launcher: the port at which the others are waited for, and
# with several nodes its rank and the number of all processes; and that all have come.
JOINING, TRAINING = b"port", b"training"
_LAUNCHER, _NEWS = "APP_LAUNCHER", "APP_LAUNCHER_NEWS"


@dataclass(frozen=True)
class Place:
    """One process of `world_size`, which find each other at `address` and `port`.

    `launcher` is the process id of the job's own launcher, None under torchrun and for a job of one
    process. To `news`, a file descriptor, the first process of a node writes for the launcher how
    far it is. With several `nodes`, `neighbours` is the number of processes on this one, itself
    included. The first process of a node begins with a `rank` and a `world_size` that hold if each
    node has as many processes; the nodes' meeting says what they are.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    address: str = "127.0.0.1"
    port: int = 0
    launcher: int | None = None
    news: int | None = None
    node: int = 0
    nodes: int = 1
    neighbours: int = 0

    @property
    def leads_node(self) -> bool:
        """Whether it speaks for its node, of several."""
        return self.nodes > 1 and self.local_rank == 0

    @property
    def is_alone(self) -> bool:
        return self.world_size == 1

    @property
    def under_torchrun(self) -> bool:
        return not self.is_alone and self.launcher is None

    def environment(self) -> dict[str, str]:
        """The environment of the process with this place, which the launcher starts.

        Processes of one node share its cores. Where there is no other node, they talk over the
        loopback interface.
        """
        here = self.neighbours or self.world_size
        own = {
            "RANK": self.rank,
            "LOCAL_RANK": self.local_rank,
            "WORLD_SIZE": self.world_size,
            "LOCAL_WORLD_SIZE": here,
            "MASTER_ADDR": self.address,
            "MASTER_PORT": self.port or None,
            "NUM_NODES": self.nodes if self.nodes > 1 else None,
            "NODE_RANK": self.node if self.nodes > 1 else None,
            _LAUNCHER: self.launcher,
            _NEWS: self.news,
        }
        allowed = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
        return {
            **({} if self.nodes > 1 else {"GLOO_SOCKET_IFNAME": "lo"}),
            "OMP_NUM_THREADS": str(max(1, len(allowed) // here)),
            **{name: value for name, value in os.environ.items() if name not in own},
            **{name: str(value) for name, value in own.items() if value is not None},
        }


def place_of_this_process(nodes: int = 1, node: int = 0) -> Place:
    """As the environment says it. `nodes` and `node` are NUM_NODES and NODE_RANK.

    Raises ConfigError for a launcher that is not known, and for what cannot be.
    """
    for name, launcher in _FOREIGN_LAUNCHERS.items():
        if _count(name) > 1 and _count(name) != nodes:
            raise ConfigError(
                f"{name}={_count(name)} (from the environment) cannot be used: the job starts its "
                f"own processes, as many as DEVICES says; start it without {launcher}, or one on "
                f"each of NUM_NODES={_count(name)} machines"
            )
    size = _count("WORLD_SIZE")
    if size <= 1 and not os.environ.get(_LAUNCHER):
        return Place(node=node, nodes=nodes)
    named = {name: os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    for name, text in named.items():
        if not text.isdecimal():
            raise ConfigError(
                f"WORLD_SIZE={size} (from the environment), but {name}={text!r} is no number: "
                "torchrun sets both; unset WORLD_SIZE to let the job start its own processes"
            )
    rank, local_rank, local_size = (int(text) for text in named.values())
    started_by, news = os.environ.get(_LAUNCHER), os.environ.get(_NEWS)
    if not started_by:  # torchrun has its own numbers, and gives each machine as many processes
        nodes, node = size // max(1, local_size), rank // max(1, local_size)
    if rank >= size or local_rank >= local_size or local_size > size:
        raise ConfigError(
            f"RANK={rank} has to be below WORLD_SIZE={size}, and LOCAL_RANK={local_rank} below "
            f"LOCAL_WORLD_SIZE={local_size}, which is not above WORLD_SIZE"
        )
    return Place(
        rank,
        local_rank,
        size,
        os.environ.get("MASTER_ADDR") or "127.0.0.1",
        _count("MASTER_PORT"),
        int(started_by) if started_by else None,
        int(news) if news else None,
        node,
        nodes,
        local_size if nodes > 1 else 0,
    )


def other_names(
    environment: Mapping[str, str], nodes: str = ""
) -> tuple[dict[str, str], list[str]]:
    """`environment` with what other launchers call the variables of processes under our names.

    Beside it one line for each contradiction. An index of a Kubernetes Job is the number of a
    machine only where there are several: a Job may as well run many runs of one machine each.
    `nodes` is NUM_NODES where a flag or a file says it.
    """
    found: dict[str, str] = dict(environment)
    problems: list[str] = []
    if environment.get("RANK") and environment.get("WORLD_SIZE"):
        return found, problems  # one that was started already: torchrun has read its own names
    names = dict(_OTHER_NAMES)
    nodes = nodes or environment.get("NUM_NODES") or environment.get("PET_NNODES") or "1"
    if nodes != "1":
        names[_JOB_INDEX] = "NODE_RANK"
    given_by: dict[str, str] = {}
    for other, ours in names.items():
        value = environment.get(other, "")
        if other == "PET_NPROC_PER_NODE" and value == "gpu":
            value = "auto"
        if not value:
            continue
        if (before := found.get(ours)) and before != value:
            problems.append(
                f"{other}={value}, but {given_by.get(ours, ours)}={before}: they mean the same; "
                "unset one of them"
            )
        found.setdefault(ours, value)
        found[ours] = found[ours] or value
        given_by.setdefault(ours, other)
    return found, problems


def _count(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else 0
