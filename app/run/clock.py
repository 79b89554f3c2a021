"""What time it is: for waiting, for records, and since this process began."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True)
class Clock:
    """What waiting needs of the time, in seconds. Tests hand in their own."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    unix: Callable[[], float] = time.time


def utc_now() -> str:
    """The time of records, in UTC: 2026-01-01T00:00:00+00:00."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def seconds_of_this_process() -> float | None:
    """Since the kernel started this process, imports included; None where /proc is missing.

    Field 22 of /proc/self/stat is the start in ticks since boot: proc(5).
    """
    try:
        stat = Path("/proc/self/stat").read_text("utf-8")
    except FileNotFoundError:
        return None
    ticks = int(stat.rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
