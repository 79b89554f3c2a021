"""The contract of a store, which a folder on a volume and a prefix in an S3 bucket both keep.

It is written at `Store`. One test suite checks it for each kind of store.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from app.errors import ConfigError

Data = Sequence[bytes | memoryview]
"""Content as a list of buffers. It can be read several times, so an upload can be retried."""

MAX_GET_BYTES = 16 * 2**20

RESERVED = ".store-"
"""Names that begin with this belong to the store: locks, probes, files that are being written."""

_PART = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class ObjectInfo:
    """One row of a listing: key below the store's root, size in bytes.

    `etag` changes when the content does; only one from `get`, `etag` or a conditional write
    can be handed to `put_if_match`.
    """

    key: str
    size: int
    etag: str


@dataclass(frozen=True)
class HalfWritten:
    """A file or upload that is still being written, or whose writer was killed.

    No listing shows it. `key` lies in the folder of the object that it was to become. `size` is
    in bytes; 0 where the store does not tell. `stale` says that by its age nobody seems to be
    writing it any more. `upload_id` is "" except on S3.
    """

    key: str
    size: int
    stale: bool
    upload_id: str = ""

    @property
    def folder(self) -> str:
        return self.key.rpartition("/")[0]


class ExclusiveLock(Protocol):
    """A lock that the kernel releases when this process ends, in whatever way it ends."""

    @property
    def scope(self) -> str:
        """The running kernel among whose processes the lock has only one holder."""
        ...

    def release(self) -> None: ...


class ReadableStore(Protocol):
    """What those use of a `Store` who only look at a run: nothing that writes."""

    @property
    def uri(self) -> str:
        """The root, safe to print."""
        ...

    def get(self, key: str, max_bytes: int = MAX_GET_BYTES) -> tuple[bytes, str]:
        """(content, etag). Raises Damaged for an object of more than `max_bytes`."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object in the folder `prefix` and below, sorted by key; "" is the root."""
        ...


class Store(ReadableStore, Protocol):
    """Objects below one root, each there completely or not at all.

    Keys are relative POSIX paths of parts `[A-Za-z0-9._-]+`, without `.` and `..` and
    without names reserved for the store; any other key raises ConfigError. The key
    `a` and the key `a/b` cannot both exist.

    Methods raise NotFound (the object is not there), NoBucket, AccessDenied, Unavailable
    (no answer, an answer that says "not now", no space left) and ConfigError. They never
    guess one of these from another. Methods may be called from several threads. Beyond the
    retries of the SDK, the caller decides what to try again.
    """

    @property
    def place(self) -> str:
        """`uri`, and whose: two servers can both have a bucket of its name. Safe to print."""
        ...

    @property
    def conditional_writes(self) -> bool:
        """Whether conditional writes are atomic here. `check` finds out.

        Where they are not, `put_if_absent` and `put_if_match` compare and then write. That is
        right while there is one writer, and no protection against a second one.
        """
        ...

    @property
    def deletes(self) -> bool:
        """Whether objects can be deleted here. `check` finds out.

        Where they cannot, `delete` and `move` raise what the store answers.
        """
        ...

    def check(self) -> None:
        """Try to reach the store, list, write, read back and delete, before training begins.

        Raises as described above, and leaves nothing behind unless the store deletes nothing.
        """
        ...

    def etag(self, key: str) -> str | None:
        """The etag of the object, which may be of any size; None if there is no object."""
        ...

    def put(self, key: str, data: Data) -> None:
        """Create or replace. The object is durable on return; an error leaves the former one."""
        ...

    def put_if_absent(self, key: str, content: bytes) -> str | None:
        """Create. Returns the new etag, or None if the key exists. One of many callers wins."""
        ...

    def put_if_match(self, key: str, content: bytes, etag: str) -> str | None:
        """Replace. Returns the new etag, or None if the object's etag is not `etag` any more."""
        ...

    def fetch(self, key: str, directory: Path, alive: Callable[[], None] = lambda: None) -> Path:
        """A local file with the content, for reading only.

        A local store returns its own file. Others download into `directory`, under the last
        part of the key. `alive` is called for each block that comes in, from any thread. An
        OSError about `directory` is passed on, since it says nothing about the store. Raises
        Unavailable if the directory was removed in the meantime.
        """
        ...

    def blocks(self, key: str, start: int, end: int) -> Iterator[bytes]:
        """The bytes of an object from `start` to `end`, in order; fewer where it ends before.

        Several blocks may be fetched at once, of some MiB each, so that a caller who was cut short
        can go on from where it was.
        """
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Delete. A key that does not exist is no error."""
        ...

    def move(self, source_key: str, target_key: str) -> None:
        """Rename, replacing the target. The source is deleted only after the target is there."""
        ...

    def half_written(self) -> Sequence[HalfWritten]:
        """All that anybody has half written below the root, as far as the store tells."""
        ...

    def discard(self, half: HalfWritten) -> None:
        """Remove it. A writer that is still writing it gets Unavailable.

        A writer that has finished in the meantime loses nothing. Where the store refuses, that is
        logged and is no error: this is housekeeping.
        """
        ...

    def free_bytes(self) -> int | None:
        """Space left for this user, in bytes; None if the store has no known limit."""
        ...

    def exclusive_lock(self) -> ExclusiveLock | None:
        """The store's one lock for the life of this process.

        None if another process has it, or if the store knows no such lock.
        """
        ...


def is_key(text: str) -> bool:
    """Whether `text` is the name of an object that a store may hold."""
    return all(
        _PART.fullmatch(part) and part not in (".", "..") and not part.startswith(RESERVED)
        for part in text.split("/")
    )


def check_key(key: str) -> str:
    """`key` itself. Raises ConfigError if it could lead anywhere but below the root."""
    if not is_key(key):
        raise ConfigError(f"{key!r} is not the name of an object in a store")
    return key


def folder_of(prefix: str) -> str:
    """`prefix` of a listing as "" or "folder/", whether or not it came with the slash."""
    folder = prefix.removesuffix("/")
    return f"{check_key(folder)}/" if folder else ""
