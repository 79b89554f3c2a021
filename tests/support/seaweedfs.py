"""The stack's own object store on loopback, started as the stack starts it."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.object_store import ObjectStore, Ports
from tests.support import needs

KEY = ("testing", "testing-secret")
_FIRST, _LAST, _GRPC = 12_000, 22_000, 10_000  # with gRPC below what the system gives to clients


@contextmanager
def seaweedfs(folder: Path) -> Iterator[str]:
    """URL of a SeaweedFS that has its objects in `folder`, and KEY as its key."""
    if needs.seaweedfs.args[0]:
        pytest.skip(needs.seaweedfs.kwargs["reason"])
    folder.mkdir(exist_ok=True)
    store = ObjectStore(folder, ports=free_ports())
    with folder.with_name(f"{folder.name}.log").open("wb") as log:
        server = store.start(KEY, log)
        try:
            yield f"http://127.0.0.1:{store.ports.s3}"
        finally:
            server.kill()
            server.wait()


def free_ports() -> Ports:
    """Five that nobody listens on, nor on those of gRPC. Processes begin at different places."""
    span = _LAST - _FIRST
    for tried in range(0, span, 5):
        first = _FIRST + (os.getpid() * 5 + tried) % span
        ports = range(first, first + 5)
        if all(_is_free(port + above) for port in ports for above in (0, _GRPC)):
            return Ports(*ports)
    raise RuntimeError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
