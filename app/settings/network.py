"""Which interface of this machine leads to another one.

Gloo takes the one that the machine's own name leads to. That is the loopback interface wherever
/etc/hosts says so, and no other machine reaches it.
"""

import os
import socket
import struct
import sys
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

_OF_GLOO = "GLOO_SOCKET_IFNAME"
_GET_ADDRESS = 0x8915  # SIOCGIFADDR of Linux
_REQUEST = struct.Struct("16s24x")


def talk_over_interface_to(address: str) -> None:
    """Let gloo talk to other machines over the interface that leads to `address`, unless
    GLOO_SOCKET_IFNAME names one. Where it cannot be found out, gloo decides."""
    with suppress(OSError):
        if _OF_GLOO not in os.environ and (name := interface_to(address)):
            os.environ[_OF_GLOO] = name


def interface_to(address: str) -> str | None:
    """The interface over which packets to `address` leave, None if that is not known. Raises
    OSError where `address` cannot be resolved or reached."""
    family, kind, _, _, where = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as asking:
        asking.connect(where)  # sends nothing: it asks for the route
        own = str(asking.getsockname()[0])
    if sys.platform != "linux":
        return None
    return _with_ipv4(own) if family == socket.AF_INET else _with_ipv6(own)


def _with_ipv4(own: str) -> str | None:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no address of this family
                found = fcntl.ioctl(asking, _GET_ADDRESS, _REQUEST.pack(name.encode()))
                if socket.inet_ntoa(found[20:24]) == own:
                    return name
    return None


def _with_ipv6(own: str) -> str | None:
    number = ip_address(own.partition("%")[0]).packed.hex()
    lines = Path("/proc/net/if_inet6").read_text("ascii").splitlines()
    return next((line.split()[5] for line in lines if line.startswith(number)), None)
