"""Machines with a network between them that can be cut: namespaces of this one, with a switch.

Nothing of it reaches the network of the machine that the tests run on.
"""

import functools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass


@functools.cache
def why_there_is_none() -> str:
    """Why no network can be made here; "" if it can."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        return "needs ip (iproute2) and unshare, to make machines of network namespaces"
    name = f"nodes-{os.getpid()}-tried"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode:
        return "needs root (CAP_SYS_ADMIN), to make machines of network namespaces"
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return ""


@dataclass(frozen=True)
class Network:
    """`machines` of them, each with an address."""

    name: str
    machines: int

    def address(self, machine: int) -> str:
        return f"10.77.0.{machine + 1}"

    def prefix(self, machine: int) -> list[str]:
        """What runs a command there."""
        return ["ip", "netns", "exec", self._namespace(machine)]

    def cut(self, machine: int) -> None:
        """Nothing reaches that machine any more, and nobody is told."""
        _ip("-n", self._switch, "link", "set", f"port{machine}", "down")

    def kill(self, machine: int) -> None:
        """Cut it, and end all of its processes at once: their last packets reach nobody."""
        self.cut(machine)
        for pid in _ip("netns", "pids", self._namespace(machine)).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def mend(self) -> None:
        for machine in range(self.machines):
            _ip("-n", self._switch, "link", "set", f"port{machine}", "up")

    @property
    def _switch(self) -> str:
        return f"{self.name}-switch"

    def _namespace(self, machine: int) -> str:
        return f"{self.name}-{machine}"

    def make(self) -> None:
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "bridge", "up", "type", "bridge")
        for machine in range(self.machines):
            there, port = self._namespace(machine), f"port{machine}"
            _ip("netns", "add", there)
            link = ("link", "add", port, "type", "veth", "peer", "name", "wire", "netns", there)
            _ip("-n", self._switch, *link)
            _ip("-n", self._switch, "link", "set", port, "master", "bridge", "up")
            _ip("-n", there, "address", "add", f"{self.address(machine)}/24", "dev", "wire")
            for interface in ("wire", "lo"):
                _ip("-n", there, "link", "set", interface, "up")

    def remove(self) -> None:
        for name in (*(self._namespace(machine) for machine in range(self.machines)), self._switch):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@contextmanager
def network_of(machines: int) -> Iterator[Network]:
    network = Network(f"nodes-{os.getpid()}", machines)
    try:
        network.make()
        yield network
    finally:
        network.remove()


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout
