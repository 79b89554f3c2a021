"""A team of processes in a test: each does the same, and the test gets what each returned."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from app.ranks.team import Team
from app.settings.place import Place

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.support.preloaded"])

PEER_TIMEOUT = 30.0


def in_team(size: int, act: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `act(team, *arguments)` returns in each of `size` processes, by rank; None for one that
    ended without a word. `act` is a function of a module."""
    connections, processes = [], []
    for rank in range(size):
        ours, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(target=_member, args=(theirs, rank, size, act, arguments))
        process.start()
        theirs.close()
        connections.append(ours)
        processes.append(process)
    port = connections[0].recv()
    for connection in connections[1:]:
        connection.send(port)
    results = [_received(connection) for connection in connections]
    for process in processes:
        process.join(60)
        process.kill()
    return results


def _received(connection: Connection) -> Any:
    try:
        return connection.recv() if connection.poll(120) else None
    except EOFError:
        return None


def _member(
    connection: Connection, rank: int, size: int, act: Callable[..., Any], arguments: tuple[Any]
) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    launcher = os.getppid()
    if rank == 0:
        reader, writer = os.pipe()
        team = Team(Place(0, 0, size, launcher=launcher, news=writer), PEER_TIMEOUT)
        team.call()
        connection.send(int(os.read(reader, 100).split()[1]))
    else:
        place = Place(rank, rank, size, port=connection.recv(), launcher=launcher)
        team = Team(place, PEER_TIMEOUT)
    team.join(torch.device("cpu"))
    connection.send(act(team, *arguments))
