"""A checkpoint copied out of the store, which may take several calls: a killed one is gone on with.

What has arrived lies beside the folder that is to be made, in `.NAME.pull-<checkpoint>`. Bytes
arrive in several pieces at once and are written in order, so the length of a file says how far it
is. Every file is compared with its SHA-256 before the folder gets its name. The store is only read.
"""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from app.console import size
from app.errors import Damaged, NotFound, Unavailable
from app.run.checkpoints import FileEntry, check_sizes, read_manifest
from app.run.fetching import PAUSES, Expectation, check_manifest
from app.run.layout import CheckpointName
from app.stores.contract import Store
from app.stores.durable_files import blocks_of, sync_folder, try_flock

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pull:
    """Checkpoint `name` on its way to the folder `target`, which does not exist yet.

    Nothing is read of a checkpoint that is larger than `expected` allows. `begins` is told how
    many bytes it has, and `arrived` how many more of them are here: some may be from an earlier
    call, and a negative number are bytes that turned out to be wrong. A store that does not answer
    is asked again after each of `pauses` (seconds), counted anew once something has arrived.
    """

    store: Store
    name: CheckpointName
    target: Path
    expected: Expectation | None = None
    begins: Callable[[int], None] = lambda _: None
    arrived: Callable[[int], None] = lambda _: None
    pauses: Sequence[float] = PAUSES

    def run(self, leave_out: Sequence[str] = ()) -> None:
        """Make `target`, without the files to `leave_out`.

        Raises NotFound if the checkpoint is not, or no longer, in the store, Damaged, Unavailable
        also where another process is doing the same, IncompatibleRun, OSError of the disk here,
        and the store's errors. What has arrived stays for the next call but where that is Damaged.
        """
        manifest = read_manifest(self.store, self.name)
        check_manifest(self.name, manifest, (), self.expected)
        wanted = {file: e for file, e in manifest.files.items() if file not in leave_out}
        folder = _partial_folder(self.target, self.name)
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            self.begins(sum(entry.size for entry in wanted.values()))
            try:
                check_sizes(self.store, self.name, manifest)
                for file, entry in wanted.items():
                    self._file(folder / file, entry)
            except (NotFound, Damaged):
                read_manifest(self.store, self.name)  # NotFound: another process removed it all
                raise
            for path in folder.iterdir():
                if path.name not in wanted:  # an earlier call may have wanted more
                    path.unlink()
            sync_folder(folder)
            folder.rename(self.target)
        sync_folder(self.target.parent)

    def _file(self, path: Path, entry: FileEntry) -> None:
        """Complete a file. One that is wrong in the end is fetched again from its beginning."""
        key = self.name.key(path.name)
        for _ in range(3 if path.exists() else 2):
            with path.open("ab") as file:
                if file.tell() > entry.size:
                    file.truncate(0)
                if self._completed(file, path, key, entry) == entry.sha256:
                    os.fsync(file.fileno())
                    return
            path.unlink()
            self.arrived(-entry.size)
            log.warning("%s: what arrived is not what was saved: fetched again", key)
        raise Damaged(f"{key} does not match its SHA-256 in the manifest")

    def _completed(self, file: BinaryIO, path: Path, key: str, entry: FileEntry) -> str:
        """Append what is missing. The SHA-256 (hex) of the whole."""
        digest, at, failures = hashlib.sha256(), 0, 0

        def account(block: bytes) -> None:
            nonlocal at
            digest.update(block)
            at += len(block)
            self.arrived(len(block))

        for block in blocks_of(path, lambda: None):
            account(block)
        while True:
            began = at
            try:
                for block in self.store.blocks(key, at, entry.size):
                    file.write(block)
                    account(block)
            except NotFound as error:
                raise Damaged(f"{key} is missing") from error
            except Unavailable as error:
                failures = 0 if at > began else failures
                if failures == len(self.pauses):
                    raise Unavailable(
                        f"{error}. {size(at)} of {path.name} are here: the same command goes on "
                        "with them"
                    ) from error
                log.warning("%s: asked for again in %g s", error, self.pauses[failures])
            else:
                file.flush()
                return digest.hexdigest()
            time.sleep(self.pauses[failures])
            failures += 1


def begun(target: Path) -> list[CheckpointName]:
    """The checkpoints of which an earlier call has left something for `target`, newest first.

    Raises OSError.
    """
    start = _partial_folder(target, "").name
    there = list(target.parent.iterdir()) if target.parent.is_dir() else []
    found = (path.name.removeprefix(start) for path in there if path.name.startswith(start))
    return sorted(filter(None, map(CheckpointName.parse, found)), reverse=True)


def discard(target: Path, name: CheckpointName) -> None:
    """Remove what an earlier call has left of `name`. Raises Unavailable if one is running."""
    folder = _partial_folder(target, name)
    with _locked(folder):
        shutil.rmtree(folder)


def _partial_folder(target: Path, name: CheckpointName | str) -> Path:
    return target.with_name(f".{target.name}.pull-{name}")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of `folder`, where its file system has locks."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if try_flock(descriptor) is False:
            raise Unavailable(f"another process is pulling into {folder}: wait until it has ended")
        yield
    finally:
        os.close(descriptor)
