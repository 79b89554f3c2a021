"""Where a run is kept: a folder on a volume, or a prefix in an S3 bucket.

`open_store` chooses by the scheme of CHECKPOINT_URI. Both stores keep one contract,
which is written at `Store` and which one test suite checks for each of them.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from app.errors import ConfigError

Data = Sequence[bytes | memoryview]
"""Content as a list of buffers. It can be read again, so an upload can be retried."""

MAX_GET_BYTES = 16 * 2**20

RESERVED = ".store-"
"""Names that begin so are the store's own: locks, probes and files still being written."""

_PART = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class ObjectInfo:
    """One row of a listing: key below the store's root, size in bytes.

    `etag` changes when the content does; only one from `get` or a conditional write
    can be handed to `put_if_match`.
    """

    key: str
    size: int
    etag: str


@dataclass(frozen=True)
class HalfWritten:
    """What is being written, or was when its writer was killed. No listing shows it.

    `key` lies in the folder of the object that it was to become. `size` is in bytes, 0 where
    the store does not tell. `stale`: nobody seems to be at it any more, by its age. S3 alone has
    an `upload_id`.
    """

    key: str
    size: int
    stale: bool
    upload_id: str = ""

    @property
    def folder(self) -> str:
        return self.key.rpartition("/")[0]


class ExclusiveLock(Protocol):
    """A lock that the kernel drops when this process ends, however it ends."""

    @property
    def scope(self) -> str:
        """The running kernel whose processes the lock keeps apart, reliably."""
        ...

    def release(self) -> None: ...


class Store(Protocol):
    """Objects below one root, each there completely or not at all.

    Keys are relative POSIX paths of parts `[A-Za-z0-9._-]+`, without `.` and `..` and
    without names reserved for the store; any other key raises ConfigError. The key
    `a` and the key `a/b` cannot both exist.

    Methods raise NotFound (the object is not there), NoBucket, AccessDenied, Unavailable
    (no answer, an answer that says "not now", no space left), ConfigError.
    None of them guesses one from another. Methods may be called from several threads.
    What the SDK does not retry is the caller's to retry.
    """

    @property
    def uri(self) -> str:
        """The root, safe to print."""
        ...

    @property
    def conditional_writes(self) -> bool:
        """Whether conditional writes are atomic here. `check` finds out.

        Where they are not, `put_if_absent` and `put_if_match` compare and then write:
        right for one process, without protection against a second one.
        """
        ...

    def check(self) -> None:
        """Reach, list, write, read back and delete, before hours are spent on training.

        Raises as described above, and leaves nothing behind.
        """
        ...

    def get(self, key: str, max_bytes: int = MAX_GET_BYTES) -> tuple[bytes, str]:
        """(content, etag). Raises Damaged for an object of more than `max_bytes`."""
        ...

    def put(self, key: str, data: Data) -> None:
        """Create or replace; durable on return. An error leaves the former object."""
        ...

    def put_if_absent(self, key: str, content: bytes) -> str | None:
        """Create: the new etag, or None if the key exists. One of many callers wins."""
        ...

    def put_if_match(self, key: str, content: bytes, etag: str) -> str | None:
        """Replace: the new etag, or None if the object is not the one of `etag` any more."""
        ...

    def fetch(self, key: str, directory: Path, alive: Callable[[], None] = lambda: None) -> Path:
        """A local file with the content, for reading only.

        The store's own file where it is local, else a download to `directory`, under
        the last part of the key. `alive` is called for each block that comes in, in any
        thread. What is wrong with `directory` stays an OSError: it is not the store's. Raises
        Unavailable if the directory was removed meanwhile.
        """
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object in the folder `prefix` and below, sorted by key; "" is the root."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Delete; a key that does not exist is fine."""
        ...

    def move(self, source_key: str, target_key: str) -> None:
        """Rename, replacing the target. The source goes only when the target is there."""
        ...

    def half_written(self) -> Sequence[HalfWritten]:
        """All that is half written below the root, by whomever, as far as the store tells."""
        ...

    def discard(self, half: HalfWritten) -> None:
        """Remove it. A writer that is still at it gets Unavailable; one that is done loses nothing.

        Housekeeping: what the store does not let go is said, and is no error.
        """
        ...

    def free_bytes(self) -> int | None:
        """Space left for this user; None if the store does not know an end."""
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
    """`prefix` of a listing as "" or "folder/", whichever way it was written."""
    folder = prefix.removesuffix("/")
    return f"{check_key(folder)}/" if folder else ""
