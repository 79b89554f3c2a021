"""What a checkpoint says of itself: its manifest, and LATEST, which names the newest one.

LATEST is a hint for people. It never decides what is resumed. It only says that the checkpoint
that it names was whole once.
"""

import re

from pydantic import Field

from app.errors import Damaged, NotFound
from app.run.layout import HIGHEST_EPOCH, LATEST, MANIFEST, CheckpointName, file_of
from app.run.lease import WriteRight
from app.state.identity import HIGHEST_STEP
from app.stores.contract import ReadableStore, Store
from app.stores.documents import Document, Part, decode_document

MANIFEST_FORMAT = 1

_LARGEST_FILE = 1 << 37  # bytes: more than the moments of the largest model that can be trained
_LONGEST_LATEST = 1_000  # bytes

# A stricter form than that of a key: a manifest must not lead to files elsewhere.
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class FileEntry(Part):
    """What a manifest records of one file."""

    size: int = Field(ge=0, le=_LARGEST_FILE)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(Document):
    """manifest.json: its presence makes a folder a checkpoint."""

    format_version: int = MANIFEST_FORMAT
    step: int = Field(ge=0, le=HIGHEST_STEP)
    epoch: int = Field(ge=0, le=HIGHEST_EPOCH)
    train_loss: float | None
    created_at: str = Field(max_length=100)
    files: dict[str, FileEntry] = Field(min_length=1, max_length=1_000)

    @property
    def total_bytes(self) -> int:
        return sum(entry.size for entry in self.files.values())


def read_manifest(store: ReadableStore, name: CheckpointName) -> Manifest:
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


def read_latest(store: ReadableStore) -> str | None:
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
