"""Folders of one process at a time. The system releases a lock however its holder ends."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_POLL_SECONDS = 0.2


@contextmanager
def locked_folder(directory: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the directory's lock. `waiting` is called while another process has it."""
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                time.sleep(_POLL_SECONDS)
        yield
    finally:
        # Not by closing alone: processes that were forked meanwhile hold the descriptor too.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


@contextmanager
def own_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent` for this process alone, removed in the end.

    Those that killed processes left there are removed first.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with locked_folder(parent, waiting=lambda: None):
        for left in [path for path in parent.iterdir() if path.is_dir()]:
            with suppress(FileNotFoundError):  # its process removes it just now
                if (descriptor := _try_lock(left)) is not None:
                    try:
                        shutil.rmtree(left)
                    finally:
                        os.close(descriptor)
        folder = Path(tempfile.mkdtemp(dir=parent))
        descriptor = _try_lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a download may still be under way
        if descriptor is not None:
            os.close(descriptor)


def _try_lock(directory: Path) -> int | None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
