"""Checkpoints in a local folder, every byte compared with the manifest.

The newest checkpoint that passes is the one to resume.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from app.console import size
from app.errors import Damaged, NotFound, Unavailable, Unserved
from app.failures import from_os_error, from_stored_file
from app.run.checkpoints import (
    FileEntry,
    Manifest,
    check_sizes,
    read_manifest,
)
from app.run.layout import LATEST, MANIFEST, RECORD, CheckpointName
from app.run.view import CheckpointState, RunView
from app.stores.contract import Store
from app.stores.durable_files import blocks_of

log = logging.getLogger(__name__)

# Seconds before an object that is not served is asked for again. A server can take its time to
# fail: SeaweedFS needs tens of seconds for an object whose bytes have rotted.
PAUSES = (2.0, 8.0)

T = TypeVar("T")


class Expectation(Protocol):
    """What a checkpoint has to be, beside whole, to belong to the run."""

    def check(self, step: int, directory: Path) -> None:
        """Raises Damaged unless the files there are the state after `step`, and OSError."""

    def most_bytes(self, file: str) -> int:
        """How long a file of a checkpoint can be."""
        ...

    @property
    def most_bytes_in_all(self) -> int:
        """How long all files of a checkpoint together can be."""
        ...


def fetch(
    store: Store,
    name: CheckpointName,
    directory: Path,
    only: Sequence[str] = (),
    required: Sequence[str] = (),
    alive: Callable[[], None] = lambda: None,
    expected: Expectation | None = None,
    pauses: Sequence[float] = PAUSES,
) -> Path:
    """Verified files of a checkpoint in a local folder, which is returned.

    A store on a volume returns its own folder; others download into `directory`. `only` limits
    the files; `required` files must be in the manifest. Nothing is read of a checkpoint with a
    file, or with files together, that are longer than `expected` allows. `alive` is called for
    each block that is fetched or verified. A bit can flip on the way, so a damaged file is read
    once more. An object at which the store fails is asked for again after each of `pauses`
    (seconds): Unserved then tells that the store fails at this object, and not as a whole. Raises
    Damaged, which names the file and what is wrong with it, NotFound, IncompatibleRun for a newer
    format, and the store's errors.
    """
    once = _Fetch(store, name, directory, alive, pauses)
    try:
        return once.files(only, required, expected)
    except Damaged as error:
        log.warning("%s: read once more", error)
        return once.files(only, required, expected)


@dataclass(frozen=True)
class _Fetch:
    """One checkpoint that is fetched. The fields are the arguments of `fetch`."""

    store: Store
    name: CheckpointName
    directory: Path
    alive: Callable[[], None]
    pauses: Sequence[float]

    def files(
        self, only: Sequence[str], required: Sequence[str], expected: Expectation | None
    ) -> Path:
        name = self.name
        manifest = self._patiently(lambda: read_manifest(self.store, name))
        check_manifest(name, manifest, [*only, *required], expected)
        self._patiently(lambda: check_sizes(self.store, name, manifest))
        wanted = [file for file in manifest.files if not only or file in only]

        def fetch_one(file: str) -> Path:
            return self._patiently(lambda: self._file(file, manifest.files[file]))

        pool = ThreadPoolExecutor(max_workers=4)
        try:
            paths = list(pool.map(fetch_one, wanted))
        except Exception:
            pool.shutdown(cancel_futures=True)
            raise
        except BaseException:  # an interrupted process does not wait for gigabytes to arrive
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()
        return paths[0].parent

    def _file(self, file: str, entry: FileEntry) -> Path:
        key = self.name.key(file)
        try:
            path = self.store.fetch(key, self.directory, self.alive)
        except NotFound as error:
            raise Damaged(f"{key} is missing") from error
        except OSError as error:
            raise from_os_error(error, f"the download to {self.directory / file}") from error
        try:
            found = _sha256(path, self.alive)
        except OSError as error:
            downloaded = path.parent == self.directory
            raise (from_os_error if downloaded else from_stored_file)(error, str(path)) from error
        if found != entry.sha256:
            raise Damaged(f"{key} does not match its SHA-256 in the manifest")
        return path

    def _patiently(self, ask: Callable[[], T]) -> T:
        """What `ask` returns, which is about one object, and is called again if that is not served.

        Before each of these calls another object of the run is read: where the store serves that
        one, it is this one that it fails at. Raises Unserved then, and Unavailable where it serves
        neither.
        """
        for pause in self.pauses:
            try:
                return ask()
            except Unserved as error:
                log.warning("%s: asked for again in %g s", error, pause)
            self.alive()
            time.sleep(pause)
            self._read_another()
        try:
            return ask()
        except Unserved as error:
            raise Unserved(
                f"{error}. It was so {len(self.pauses) + 1} times in {sum(self.pauses):g} s, while "
                "another object of the run was read"
            ) from error

    def _read_another(self) -> None:
        """Read one that is small and always there; LATEST where run.json has been lost."""
        for key in (RECORD, LATEST):
            try:
                self.store.get(key)
                return
            except NotFound:
                continue
            except Damaged:  # it is not what it should be, but it was served
                return
            except Unserved as error:
                raise Unavailable(str(error)) from error
        raise Unavailable(f"{self.store.uri}: neither {RECORD} nor {LATEST} is there to be read")


def check_manifest(
    name: CheckpointName,
    manifest: Manifest,
    required: Sequence[str],
    expected: Expectation | None,
) -> None:
    """Raises Damaged for a manifest without a `required` file, or with more than is `expected`."""
    if lacking := sorted(set(required) - set(manifest.files)):
        raise Damaged(f"{name.key(MANIFEST)} does not list {lacking[0]}")
    for file, entry in manifest.files.items():
        if expected and entry.size > expected.most_bytes(file):
            raise Damaged(f"{name.key(MANIFEST)} lists {file} with {size(entry.size)}")
    if expected and manifest.total_bytes > expected.most_bytes_in_all:
        raise Damaged(f"{name.key(MANIFEST)} lists files of {size(manifest.total_bytes)} in all")


@dataclass(frozen=True)
class ValidCheckpoint:
    """The newest checkpoint that is whole, its local folder, and the newer ones.

    Those are damaged, or the store does not serve them: it reads others of the run, and fails at an
    object of theirs again and again. Each comes with the reason.
    """

    name: CheckpointName
    directory: Path
    damaged: Sequence[tuple[CheckpointName, str]]
    unserved: Sequence[tuple[CheckpointName, str]] = ()


def newest_valid(
    store: Store,
    view: RunView,
    directory: Path,
    required: Sequence[str] = (),
    alive: Callable[[], None] = lambda: None,
    expected: Expectation | None = None,
    pauses: Sequence[float] = PAUSES,
) -> ValidCheckpoint | None:
    """Search from the newest checkpoint on, downloading into `directory` where needed.

    A checkpoint that lacks a `required` file, or that is not the `expected` one, counts as
    damaged. `alive` and `pauses` are as in `fetch`. Returns None if the store holds no committed
    checkpoint at all. Raises Damaged if there are checkpoints and none of them is whole, Unserved
    if one of these may be, IncompatibleRun, and the store's errors.
    """
    damaged: list[tuple[CheckpointName, str]] = []
    unserved: list[tuple[CheckpointName, str]] = []
    for stored in view.checkpoints:
        if stored.state is CheckpointState.LOST_MANIFEST:
            damaged.append((stored.name, f"{stored.name.key(MANIFEST)} is missing"))
        if not stored.committed:
            continue
        target = directory / str(stored.name)
        target.mkdir(parents=True, exist_ok=True)
        try:
            path = fetch(store, stored.name, target, (), required, alive, expected, pauses)
            check_expected(stored.name, path, expected)
            return ValidCheckpoint(stored.name, path, damaged, unserved)
        except Damaged as error:
            damaged.append((stored.name, str(error)))
        except Unserved as error:
            unserved.append((stored.name, str(error)))
    if unserved:
        raise Unserved(
            f"no checkpoint can be read in {store.uri}: {unserved[0][1]}. Nothing was changed: "
            "start again later; if it stays so, restore the object from a backup, or choose "
            "another RUN_NAME to start again"
        )
    if damaged:
        listing = "; ".join(f"{name}: {reason}" for name, reason in damaged)
        raise Damaged(
            f"no valid checkpoint is left in {store.uri} ({listing}). Nothing was changed: restore "
            "one from a backup, or choose another RUN_NAME to start again"
        )
    return None


def check_expected(name: CheckpointName, directory: Path, expected: Expectation | None) -> None:
    """Raises Damaged unless the fetched checkpoint in `directory` is the `expected` one."""
    if expected is None:
        return
    try:
        expected.check(name.step, directory)
    except OSError as error:
        raise from_os_error(error, str(directory)) from error


def _sha256(path: Path, alive: Callable[[], None]) -> str:
    """Raises OSError."""
    digest = hashlib.sha256()
    for block in blocks_of(path, alive):
        digest.update(block)
    return digest.hexdigest()
