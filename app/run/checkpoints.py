"""Checkpoints in a store: committed whole, verified on load, pruned last.

    checkpoints/step-0000000020-e000001/    step 20, written under lease epoch 1
        …files…                             first
        manifest.json                       sizes and SHA-256 of every file; makes it a checkpoint
    LATEST                                  last; a hint for people: it never decides what is
                                            resumed, only that what it names was whole once
    quarantine/step-…-e…/                   damaged checkpoints, each with its reason.json

A folder without a manifest is an upload that was cut short. Checkpoints order by
(step, epoch); the newest whose every byte matches its manifest is the one to resume.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import Damaged, NotFound, Unavailable
from app.failures import from_os_error
from app.run.journal import fences
from app.stores.contract import Data, Store
from app.stores.documents import check_format

log = logging.getLogger(__name__)

MANIFEST_FORMAT = 1
MANIFEST = "manifest.json"
LATEST = "LATEST"
FOLDER = "checkpoints"

_NAME = re.compile(r"step-(\d{10})-e(\d{6})")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_BLOCK = 1 << 20  # bytes


class FileEntry(BaseModel):
    """What a manifest records of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """manifest.json: its presence makes a folder a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format_version: int = MANIFEST_FORMAT
    step: int = Field(ge=0)
    epoch: int = Field(ge=0)
    train_loss: float | None
    created_at: str
    files: dict[str, FileEntry] = Field(min_length=1)

    @property
    def total_bytes(self) -> int:
        return sum(entry.size for entry in self.files.values())


@dataclass(frozen=True, order=True)
class CheckpointName:
    """Orders as checkpoints do: by step, then by the writer's epoch."""

    step: int
    epoch: int

    @classmethod
    def parse(cls, text: str) -> "CheckpointName | None":
        match = _NAME.fullmatch(text)
        return cls(int(match[1]), int(match[2])) if match else None

    def __str__(self) -> str:
        return f"step-{self.step:010d}-e{self.epoch:06d}"

    def key(self, file: str = "") -> str:
        return f"{FOLDER}/{self}/{file}"


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint as the listing shows it: file sizes, and whether a manifest is there.

    A `late` one was committed by a process that had lost the run: see `app.run.journal`.
    """

    name: CheckpointName
    sizes: Mapping[str, int]
    late: bool = False

    @property
    def committed(self) -> bool:
        return self.finished and not self.late

    @property
    def finished(self) -> bool:
        return MANIFEST in self.sizes

    def lost_manifest(self, latest: str | None) -> bool:
        """Whether it is damaged, not unfinished: what LATEST names was whole once."""
        return not self.finished and str(self.name) == latest


def stored_checkpoints(store: Store) -> list[StoredCheckpoint]:
    """Every checkpoint folder of the run, newest first, committed or not."""
    folders: dict[CheckpointName, dict[str, int]] = {}
    for info in store.list(f"{FOLDER}/"):
        _, folder, *rest = info.key.split("/")
        name = CheckpointName.parse(folder)
        if name is not None and len(rest) == 1:
            folders.setdefault(name, {})[rest[0]] = info.size
    if not folders:
        return []
    late = fences(store).late
    return [
        StoredCheckpoint(name, folders[name], late(name.step, name.epoch))
        for name in sorted(folders, reverse=True)
    ]


def highest_epoch(store: Store) -> int:
    """Of every attempt that left something behind; 0 if none did."""
    named = [stored.name.epoch for stored in stored_checkpoints(store)]
    return max(named + [epoch for epoch, _ in fences(store).starts], default=0)


def find_checkpoint(store: Store, text: str) -> CheckpointName:
    """The committed checkpoint that `text` names: step-…-e…, a step number, or latest."""
    committed = [stored.name for stored in stored_checkpoints(store) if stored.committed]
    if not committed:
        raise NotFound(f"{store.uri} holds no checkpoint yet")
    if text == "latest":
        return committed[0]
    for name in committed:
        if text in (str(name), str(name.step)):
            return name
    known = ", ".join(str(name.step) for name in committed)
    raise NotFound(f"{store.uri} holds no checkpoint {text!r}; there are steps {known}")


def read_manifest(store: Store, name: CheckpointName) -> Manifest:
    """Raises NotFound, Damaged, or IncompatibleRun for a newer format."""
    content, _ = store.get(name.key(MANIFEST))
    check_format(content, MANIFEST_FORMAT, name.key(MANIFEST))
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise Damaged(f"{name.key(MANIFEST)}: {error.errors()[0]['msg']}") from error
    if (manifest.step, manifest.epoch) != (name.step, name.epoch):
        raise Damaged(f"{name.key(MANIFEST)} describes step {manifest.step}-e{manifest.epoch}")
    if unsafe := [file for file in manifest.files if not _FILE_NAME.fullmatch(file)]:
        raise Damaged(f"{name.key(MANIFEST)} names an unusable file: {unsafe[0]!r}")
    return manifest


def read_latest(store: Store) -> str | None:
    """What LATEST says; None before the first commit, and where none is left to name."""
    try:
        content, _ = store.get(LATEST)
    except NotFound:
        return None
    return content.decode("utf-8", "replace").strip() or None


class Held(Protocol):
    """The right to write to the run: what saving needs of `app.run.lease.Lease`."""

    def check(self) -> None: ...
    def put(self, key: str, content: bytes) -> None: ...


def commit(
    store: Store,
    name: CheckpointName,
    files: Mapping[str, Data],
    train_loss: float | None,
    lease: Held,
) -> Manifest:
    """Write a checkpoint: data, then manifest, then pointer.

    The lease is asked before the manifest, which is the step that others can see, and again
    before the pointer: a manifest that LATEST names was there while its writer held the run, so
    every successor has seen it. Raises Fenced, and Unavailable if the store lists other sizes
    than were written.
    """
    # One SHA-256 runs on one core, and two files hold nearly all bytes.
    with ThreadPoolExecutor(max_workers=2) as pool:
        entries = dict(zip(files, pool.map(_entry, files.values()), strict=True))
    for file, data in files.items():
        store.put(name.key(file), data)
    manifest = Manifest(
        step=name.step,
        epoch=name.epoch,
        train_loss=train_loss,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        files=entries,
    )
    try:
        check_sizes(store, name, manifest)
    except Damaged as error:
        raise Unavailable(f"{store.uri} did not keep what was written: {error}") from error
    lease.check()
    store.put(name.key(MANIFEST), [manifest.model_dump_json(indent=1).encode()])
    lease.put(LATEST, f"{name}\n".encode())
    return manifest


def fetch(
    store: Store,
    name: CheckpointName,
    directory: Path,
    only: Sequence[str] = (),
    required: Sequence[str] = (),
    alive: Callable[[], None] = lambda: None,
) -> Path:
    """Verified files of a checkpoint in a local folder, which is returned.

    A store on a volume returns its own folder; others download into `directory`.
    `only` limits the files; `required` must be among them. `alive` is called for
    each block that is fetched or verified. Raises Damaged with the file and what is wrong with
    it, twice: a bit can flip on the way.
    """
    try:
        return _fetch_once(store, name, directory, only, required, alive)
    except Damaged as error:
        log.warning("%s: read once more", error)
        return _fetch_once(store, name, directory, only, required, alive)


def _fetch_once(
    store: Store,
    name: CheckpointName,
    directory: Path,
    only: Sequence[str],
    required: Sequence[str],
    alive: Callable[[], None],
) -> Path:
    manifest = read_manifest(store, name)
    if lacking := sorted({*only, *required} - set(manifest.files)):
        raise Damaged(f"{name.key(MANIFEST)} does not list {lacking[0]}")
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
    except BaseException:  # who is interrupted does not wait for gigabytes
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return paths[0].parent


@dataclass(frozen=True)
class ValidCheckpoint:
    """The newest checkpoint that verifies, its local folder, and the damaged ones met before."""

    name: CheckpointName
    directory: Path
    damaged: Sequence[tuple[CheckpointName, str]]


def newest_valid(
    store: Store,
    directory: Path,
    required: Sequence[str] = (),
    alive: Callable[[], None] = lambda: None,
) -> ValidCheckpoint | None:
    """Search from the newest checkpoint on, downloading into `directory` where needed.

    One without a `required` file is damaged. `alive` is as in `fetch`. None if the store
    holds no committed checkpoint at all. Raises Damaged when there are checkpoints and none
    of them is valid.
    """
    damaged: list[tuple[CheckpointName, str]] = []
    latest = read_latest(store)
    for stored in stored_checkpoints(store):
        if not stored.committed:
            if stored.lost_manifest(latest):
                damaged.append((stored.name, f"{stored.name.key(MANIFEST)} is missing"))
            continue
        target = directory / str(stored.name)
        target.mkdir(parents=True, exist_ok=True)
        try:
            path = fetch(store, stored.name, target, required=required, alive=alive)
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


def check_sizes(store: Store, name: CheckpointName, manifest: Manifest) -> None:
    """Raises Damaged if a file is missing or has another size than the manifest says."""
    sizes = {info.key.rsplit("/", 1)[1]: info.size for info in store.list(name.key())}
    for file, entry in manifest.files.items():
        if file not in sizes:
            raise Damaged(f"{name.key(file)} is missing")
        if sizes[file] != entry.size:
            raise Damaged(
                f"{name.key(file)} has {sizes[file]} bytes, the manifest says {entry.size}"
            )


def _verify(path: Path, entry: FileEntry, key: str, alive: Callable[[], None]) -> None:
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                alive()
    except OSError as error:
        raise from_os_error(error, str(path)) from error
    if digest.hexdigest() != entry.sha256:
        raise Damaged(f"{key} does not match its SHA-256 in the manifest")


def _entry(data: Data) -> FileEntry:
    digest, size = hashlib.sha256(), 0
    for buffer in data:
        digest.update(buffer)
        size += len(buffer)
    return FileEntry(size=size, sha256=digest.hexdigest())
