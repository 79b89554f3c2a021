"""What is asked of NCCL, which adds up between cards. It reads these variables itself."""

import os
from collections.abc import MutableMapping

# By the name of now, and the one that it had before.
_RECORD_NAMES = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
_RECORDED = "256"  # collectives, the newest ones: some hundred kilobytes
# 2: where a peer is lost, what waits for it on the card is given up, and the process goes on. It
# has a step to commit. By default torch would end the process, with an exit code of its own.
_ERRORS = "TORCH_NCCL_ASYNC_ERROR_HANDLING", "2"


def ask_nccl(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what the user has not set. To be called before a process group is made."""
    environment.setdefault(*_ERRORS)
    if not any(environment.get(name) for name in _RECORD_NAMES):
        environment[_RECORD_NAMES[0]] = _RECORDED
