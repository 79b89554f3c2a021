"""Checkpoints in a local folder, every byte compared with the manifest.

The newest checkpoint that passes is the one to resume.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from app.console import size
from app.errors import Damaged, NotFound
from app.failures import from_os_error
from app.run.checkpoints import (
    FileEntry,
    check_sizes,
    read_manifest,
)
from app.run.layout import MANIFEST, CheckpointName
from app.run.view import CheckpointState, RunView
from app.stores.contract import Store
from app.stores.durable_files import blocks_of

log = logging.getLogger(__name__)


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
) -> Path:
    """Verified files of a checkpoint in a local folder, which is returned.

    A store on a volume returns its own folder; others download into `directory`. `only` limits
    the files; `required` files must be in the manifest. Nothing is read of a checkpoint with a
    file, or with files together, that are longer than `expected` allows. `alive` is called for
    each block that is fetched or verified. A bit can flip on the way, so a damaged file is read
    once more. Raises Damaged, which names the file and what is wrong with it, NotFound,
    IncompatibleRun for a newer format, and the store's errors.
    """
    try:
        return _fetch_once(store, name, directory, only, required, alive, expected)
    except Damaged as error:
        log.warning("%s: read once more", error)
        return _fetch_once(store, name, directory, only, required, alive, expected)


def _fetch_once(
    store: Store,
    name: CheckpointName,
    directory: Path,
    only: Sequence[str],
    required: Sequence[str],
    alive: Callable[[], None],
    expected: Expectation | None,
) -> Path:
    manifest = read_manifest(store, name)
    if lacking := sorted({*only, *required} - set(manifest.files)):
        raise Damaged(f"{name.key(MANIFEST)} does not list {lacking[0]}")
    for file, entry in manifest.files.items():
        if expected and entry.size > expected.most_bytes(file):
            raise Damaged(f"{name.key(MANIFEST)} lists {file} with {size(entry.size)}")
    if expected and manifest.total_bytes > expected.most_bytes_in_all:
        raise Damaged(f"{name.key(MANIFEST)} lists files of {size(manifest.total_bytes)} in all")
    check_sizes(store, name, manifest)
    wanted = [file for file in manifest.files if not only or file in only]

    def fetch_one(file: str) -> Path:
        try:
            path = store.fetch(name.key(file), directory, alive)
        except NotFound as error:
            raise Damaged(f"{name.key(file)} is missing") from error
        except OSError as error:
            raise from_os_error(error, f"the download to {directory / file}") from error
        _verify(path, manifest.files[file], name.key(file), alive)
        return path

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


@dataclass(frozen=True)
class ValidCheckpoint:
    """The newest checkpoint that is whole, its local folder, and the damaged newer ones.

    Each damaged one comes with the reason.
    """

    name: CheckpointName
    directory: Path
    damaged: Sequence[tuple[CheckpointName, str]]


def newest_valid(
    store: Store,
    view: RunView,
    directory: Path,
    required: Sequence[str] = (),
    alive: Callable[[], None] = lambda: None,
    expected: Expectation | None = None,
) -> ValidCheckpoint | None:
    """Search from the newest checkpoint on, downloading into `directory` where needed.

    A checkpoint that lacks a `required` file, or that is not the `expected` one, counts as
    damaged. `alive` is as in `fetch`. Returns
    None if the store holds no committed checkpoint at all. Raises Damaged if there are
    checkpoints and none of them is whole, IncompatibleRun, and the store's errors.
    """
    damaged: list[tuple[CheckpointName, str]] = []
    for stored in view.checkpoints:
        if stored.state is CheckpointState.LOST_MANIFEST:
            damaged.append((stored.name, f"{stored.name.key(MANIFEST)} is missing"))
        if not stored.committed:
            continue
        target = directory / str(stored.name)
        target.mkdir(parents=True, exist_ok=True)
        try:
            path = fetch(store, stored.name, target, (), required, alive, expected)
            check_expected(stored.name, path, expected)
            return ValidCheckpoint(stored.name, path, damaged)
        except Damaged as error:
            damaged.append((stored.name, str(error)))
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


def _verify(path: Path, entry: FileEntry, key: str, alive: Callable[[], None]) -> None:
    digest = hashlib.sha256()
    try:
        for block in blocks_of(path, alive):
            digest.update(block)
    except OSError as error:
        raise from_os_error(error, str(path)) from error
    if digest.hexdigest() != entry.sha256:
        raise Damaged(f"{key} does not match its SHA-256 in the manifest")
