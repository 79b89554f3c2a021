"""A volume whose power fails after each call to the operating system: what is left on it.

Until an fsync, a change is in memory only: of a file its content, of a folder its names. File
systems write the two in an order of their own. So each failure leaves two volumes: one that
lost all that was not synced, and one on which every name had arrived, and no content.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

Files = Mapping[str, bytes]
"""Path below the root to content."""

_CALLS = ("open", "write", "fsync", "replace", "rename", "link", "unlink", "mkdir", "rmdir")
_Names = Mapping[str, int | None]  # a file's inode; None for a folder


class PowerCuts:
    """What power cuts leave of the folder `root`, an empty one that is on the disk already.

    `kept` holds files open until the test ends: a number of an inode is then not given twice.
    """

    def __init__(self, root: Path, kept: ExitStack) -> None:
        self._root, self._kept = root, kept
        self._names: dict[Path, _Names] = {}
        self._contents: dict[int, bytes] = {}

    @contextmanager
    def at_each_call(self) -> Iterator[list[tuple[str, Files]]]:
        """Collects (call, what a power cut after it leaves) while the block runs."""
        cuts: list[tuple[str, Files]] = []
        with ExitStack() as patches:
            for name in _CALLS:
                interposed = self._interposed(name, getattr(os, name), cuts)
                patches.enter_context(mock.patch.object(os, name, interposed))
            yield cuts

    def now(self) -> list[Files]:
        """What a power cut at this moment leaves, in the two ways."""
        return [
            self._left(self._root, lambda folder: self._names.get(folder, {})),
            self._left(self._root, _present),
        ]

    def _interposed(
        self, name: str, call: Callable[..., Any], cuts: list[tuple[str, Files]]
    ) -> Callable[..., Any]:
        def interposed(target: Any, *rest: Any, **named: Any) -> Any:
            result = call(target, *rest, **named)
            if name == "open" and rest[0] & os.O_CREAT:
                self._kept.callback(os.close, call(target, os.O_RDONLY))
            elif name == "mkdir":
                self._names[Path(target)] = {}
            elif name == "fsync":
                self._synced(target)
            cuts.extend((f"{name} {target}", left) for left in self.now())
            return result

        return interposed

    def _synced(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}")
        if path.is_dir():
            self._names[path.readlink()] = _present(path)
        else:
            self._contents[os.fstat(descriptor).st_ino] = path.read_bytes()

    def _left(self, folder: Path, names: Callable[[Path], _Names]) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        for name, inode in names(folder).items():
            if inode is None:
                files |= self._left(folder / name, names)
            else:
                key = (folder / name).relative_to(self._root).as_posix()
                files[key] = self._contents.get(inode, b"")
        return files


def _present(folder: Path) -> _Names:
    with os.scandir(folder) as entries:
        return {entry.name: None if entry.is_dir() else entry.inode() for entry in entries}
