"""A file that is there and cannot be read: another user's, or on a disk that fails."""

import builtins
import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest


class _Rotten(io.RawIOBase):
    """Opens, and fails where it is read: the system names no file then."""

    def readable(self) -> bool:
        return True

    def readinto(self, target: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def make_unreadable(monkeypatch: pytest.MonkeyPatch, path: Path, number: int) -> None:
    """EACCES or EIO for whoever reads the file that is at `path` now, not one that replaces it.

    By patching what opens files: root may read everything, and no disk rots when it is asked to.
    """
    inode, really = path.stat().st_ino, builtins.open

    def opened(file: Any, mode: str = "r", *more: Any, **words: Any) -> Any:
        reads = mode.startswith("r") and isinstance(file, (str, Path)) and Path(file) == path
        if not (reads and path.stat().st_ino == inode):
            return really(file, mode, *more, **words)
        if number == errno.EIO:
            return _Rotten()
        raise OSError(number, os.strerror(number), str(file))

    monkeypatch.setattr(builtins, "open", opened)
    monkeypatch.setattr(io, "open", opened)
