"""No process of a run outlives the one that started it."""

import ctypes
import os
import signal
import sys

from app.errors import Preempted

_PR_SET_PDEATHSIG = 1


def stop_with(launcher: int) -> None:
    """Let the system send SIGTERM to this process when the launcher ends, however it ends.

    So its steps are committed, and it is over after GRACE_SECONDS. Raises Preempted if that has
    happened already. Only Linux can do this.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != launcher:
        raise Preempted("the process that started this one has ended")
