"""The processes that the job's launcher has started, as the system shows them."""

import os
import time
from collections.abc import Mapping
from pathlib import Path


def workers_of(launcher: int) -> dict[int, int]:
    """The process id of each rank."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent != launcher:
                continue
            content = (folder / "environ").read_bytes().decode("utf-8", "replace")
        except OSError:  # it has ended meanwhile
            continue
        environment = dict(pair.split("=", 1) for pair in content.split("\0") if "=" in pair)
        if "LOCAL_RANK" in environment:
            found[int(environment["LOCAL_RANK"])] = int(folder.name)
    return found


def living(pids: Mapping[int, int]) -> list[int]:
    """The ranks whose processes have not ended."""
    return [rank for rank, pid in pids.items() if _lives(pid)]


def wait_until_gone(pids: Mapping[int, int], seconds: float) -> list[int]:
    """The ranks that live for longer than that."""
    until = time.monotonic() + seconds
    while (left := living(pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
