"""DATA_DIR: what lies where in it, and how processes that share it keep out of each other's way.

    tokens/<fingerprint>/             shards, their index, and tokens of no shard yet
    tokens/<fingerprint>/incoming/    shards that are being downloaded
    tokens/<fingerprint>/restoring/   only the lock of the process that makes a shard again
    tokenizers/                       tokenizers that were fetched or trained
    downloads/                        files of DATASET while they are read
    restore/                          the checkpoint from which a run goes on, while it is read
    logs/<run>-<digest>/              the logs of a run; `store.txt` in it names the run's store
    logs/<run>-<digest>/, logs/<run>/ as earlier versions kept them: of all endpoints, of all stores
    profiles/                         a trace of PROFILE_STEPS on its way into the store
    tmp/                              temporary files, where the machine has no folder for them
    .scratch-…/                       downloads of a command that looks at a run (app.cli.named_run)

A lock is a file lock: the system releases it however the process that holds it ends.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.failures import disk_failures
from app.stores.durable_files import sync_folder

log = logging.getLogger(__name__)

OWN_FOLDER = "smollm2-own-"  # begins the name of each folder that `own_folder` makes
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class DataDir:
    """The folders in DATA_DIR=`path`. None of them needs to exist."""

    path: Path

    @property
    def setting(self) -> str:
        """The variable with its value, for messages."""
        return f"DATA_DIR={self.path}"

    @property
    def tokenizers(self) -> Path:
        return self.path / "tokenizers"

    @property
    def downloads(self) -> Path:
        return self.path / "downloads"

    @property
    def profiles(self) -> Path:
        return self.path / "profiles"

    @property
    def restore(self) -> Path:
        return self.path / "restore"

    def overlapped_by(self, place: Path) -> Path | None:
        """The folder from which the job removes files, if `place` lies in it or around it.

        Nothing else may be kept there. None if there is no such folder.
        """
        place = place.resolve()
        for folder in (self.restore, self.downloads, self.path / "tokens"):
            if place.is_relative_to(folder.resolve()) or folder.resolve().is_relative_to(place):
                return folder
        return None

    def take_temporary_files(self) -> None:
        """Let temporary files lie here if the machine has no folder for them, as in a container
        with a read-only root and nothing at /tmp: torch wants one as soon as it is imported.

        Raises AccessDenied, ConfigError or Unavailable if they cannot lie here either.
        """
        try:
            tempfile.gettempdir()
        except FileNotFoundError:
            folder = self.path / "tmp"
            with disk_failures(f"no folder for temporary files (TMPDIR, /tmp), and {self.setting}"):
                folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()
            tempfile.tempdir = str(folder)

    def logs(self, run_name: str, store_place: str) -> Path:
        """The local logs of the run of this name in the store of this `place`."""
        digest = hashlib.sha256(store_place.encode()).hexdigest()[:8]
        return self.path / "logs" / f"{run_name}-{digest}"

    def former_logs(self, run_name: str, store_uri: str) -> Sequence[Path]:
        """Where earlier versions kept them, newest first: for all endpoints, and for all stores."""
        return self.logs(run_name, store_uri), self.path / "logs" / run_name

    def tokens(self, fingerprint: str) -> Path:
        """Where the shards of this fingerprint (see `tokens_fingerprint`) lie."""
        return self.path / "tokens" / fingerprint[:24]

    def incoming(self, fingerprint: str) -> Path:
        return self.tokens(fingerprint) / "incoming"

    def restoring(self, fingerprint: str) -> Path:
        return self.tokens(fingerprint) / "restoring"


def write_durably(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that it holds either all of `data` or what it held before, also after a
    power cut. Raises OSError."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


@contextmanager
def locked_folder(directory: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the directory's lock. `waiting` is called again and again while another process holds
    it; what it raises ends the wait."""
    path = directory / ".lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except PermissionError:
        descriptor = os.open(path, os.O_RDONLY)  # another user's: a lock needs no right to write
    try:
        while not _locks(descriptor):
            waiting()
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        # Closing alone does not release the lock: processes that were forked while it was held
        # have the descriptor too.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


@contextmanager
def own_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent` that only this process uses. It is removed in the end.

    Folders that killed processes left in `parent` are removed first: their name begins with the
    mark of this function, and nobody holds their lock. Whatever has another name was made by
    somebody else, and stays. So does a link, and what this user may not remove.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with locked_folder(parent, waiting=lambda: None):
        _remove_left(parent)
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=OWN_FOLDER))
        descriptor = _try_lock(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a download may still write to it
        if descriptor is not None:
            os.close(descriptor)


def _remove_left(parent: Path) -> None:
    kept = []
    for left in parent.glob(f"{OWN_FOLDER}*"):
        if left.is_symlink() or not left.is_dir():
            continue
        try:
            if (descriptor := _try_lock(left)) is not None:
                try:
                    shutil.rmtree(left)
                finally:
                    os.close(descriptor)
        except FileNotFoundError:
            pass  # its process removes it at this moment
        except OSError as error:
            kept.append(f"{left} ({error.strerror or error})")
    if kept:
        log.warning("what killed processes left cannot be removed, and stays: %s", ", ".join(kept))


def _try_lock(directory: Path) -> int | None:
    """A descriptor that holds the lock of the folder itself; None if another process has it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_NOFOLLOW)
    if _locks(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
