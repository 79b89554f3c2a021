"""The checkpoints that are in a store, as listings, manifests and LATEST show them.

A folder without a manifest is an upload that was cut short. Checkpoints order by (step, epoch).
LATEST is a hint for people. It never decides what is resumed. It only says that the checkpoint
that it names was whole once.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from app.errors import Damaged, NotFound
from app.run.fence import fences
from app.run.layout import (
    CHECKPOINTS,
    HIGHEST_EPOCH,
    LATEST,
    MANIFEST,
    CheckpointName,
    file_of,
)
from app.run.lease import WriteRight
from app.state.identity import HIGHEST_STEP
from app.stores.contract import Store
from app.stores.documents import decode_document

MANIFEST_FORMAT = 1

_LARGEST_FILE = 1 << 37  # bytes: more than the moments of the largest model that can be trained
_LONGEST_LATEST = 1_000  # bytes

# A stricter form than that of a key: a manifest must not lead to files elsewhere.
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class FileEntry(BaseModel):
    """What a manifest records of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    size: int = Field(ge=0, le=_LARGEST_FILE)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """manifest.json: its presence makes a folder a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    format_version: int = MANIFEST_FORMAT
    step: int = Field(ge=0, le=HIGHEST_STEP)
    epoch: int = Field(ge=0, le=HIGHEST_EPOCH)
    train_loss: float | None
    created_at: str = Field(max_length=100)
    files: dict[str, FileEntry] = Field(min_length=1, max_length=1_000)

    @property
    def total_bytes(self) -> int:
        return sum(entry.size for entry in self.files.values())


@dataclass(frozen=True)
class StoredCheckpoint:
    """The folder of a checkpoint as a listing shows it: its files, with their sizes in bytes.

    A `late` one was committed by a process that had lost the run: see `app.run.fence`.
    """

    name: CheckpointName
    sizes: Mapping[str, int]
    late: bool = False

    @property
    def committed(self) -> bool:
        """Whether it is a checkpoint of the run."""
        return self.has_manifest and not self.late

    @property
    def has_manifest(self) -> bool:
        return MANIFEST in self.sizes

    def lost_manifest(self, latest: str | None) -> bool:
        """Whether the folder is a damaged checkpoint, and not an upload that was cut short.

        `latest` is what LATEST says: what it names had its manifest once.
        """
        return not self.has_manifest and str(self.name) == latest


def stored_checkpoints(store: Store) -> list[StoredCheckpoint]:
    """Every checkpoint folder of the run, newest first, committed or not."""
    folders: dict[CheckpointName, dict[str, int]] = {}
    for info in store.list(f"{CHECKPOINTS}/"):
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
    """The highest epoch of all attempts that left something behind; 0 if none did."""
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
    key = name.key(MANIFEST)
    manifest = decode_document(
        store.get(key)[0],
        Manifest,
        key,
        newest_format=MANIFEST_FORMAT,
        damaged=lambda what: f"{key}: {what}",
    )
    if (manifest.step, manifest.epoch) != (name.step, name.epoch):
        raise Damaged(f"{key} describes step {manifest.step}-e{manifest.epoch}")
    if unsafe := [file for file in manifest.files if not _FILE_NAME.fullmatch(file)]:
        raise Damaged(f"{key} names an unusable file: {unsafe[0]!r}")
    return manifest


def check_sizes(store: Store, name: CheckpointName, manifest: Manifest) -> None:
    """Raises Damaged if a file is missing or has another size than the manifest says."""
    sizes = {file_of(info.key): info.size for info in store.list(name.key())}
    for file, entry in manifest.files.items():
        if file not in sizes:
            raise Damaged(f"{name.key(file)} is missing")
        if sizes[file] != entry.size:
            raise Damaged(
                f"{name.key(file)} has {sizes[file]} bytes, the manifest says {entry.size}"
            )


def read_latest(store: Store) -> str | None:
    """What LATEST says; None before the first commit, and where no checkpoint is left to name."""
    try:
        content, _ = store.get(LATEST, _LONGEST_LATEST)
    except NotFound:
        return None
    except Damaged:
        return "(what is too long for a name)"
    return content.decode("utf-8", "replace").strip() or None


def write_latest(name: CheckpointName | None, lease: WriteRight) -> None:
    """Let LATEST name a checkpoint, or none."""
    lease.put(LATEST, f"{name or ''}\n".encode())
