"""A store in a folder: on a disk, a mounted volume or a network file system.

A file is written beside its target as `.store-partial-<kernel>-<random>` and synced. Then it is
renamed, and the folder is synced. So a name never shows half a file, not even after a power cut.
The writer keeps an flock on the partial file while it writes. A partial file that is old and not
locked is stale: its writer was killed.

Conditional writes compare and replace under an flock on `.store-lock`. On a file system without
flock, `conditional_writes` is False.
"""

import hashlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from app.errors import ConfigError, Damaged, NotFound, Unavailable
from app.failures import from_stored_file
from app.stores.contract import (
    MAX_GET_BYTES,
    RESERVED,
    Data,
    HalfWritten,
    ObjectInfo,
    check_key,
    folder_of,
    is_key,
)
from app.stores.durable_files import (
    FileLock,
    files_below,
    kernel_id,
    make_folders,
    open_new,
    regular_file,
    sync_folder,
    try_flock,
    write_all,
)
from app.stores.limits import DEFAULT_LIMITS, StoreLimits

log = logging.getLogger(__name__)

PARTIAL = f"{RESERVED}partial-"
_WRITE_LOCK = f"{RESERVED}lock"
_PROCESS_LOCK = f"{RESERVED}writer"

_LOCK_PATIENCE = 10.0  # seconds; a compare-and-replace of a small file takes milliseconds
_LOCK_POLL = 0.005  # seconds
_PROBE_BYTES = 65_536
_BLOCK_BYTES = 1 << 20


class LocalStore:
    """See `app.stores.contract.Store` for the contract. `root` need not exist yet."""

    deletes = True  # `check` refuses a folder where it cannot remove its own file

    def __init__(self, root: Path, limits: StoreLimits = DEFAULT_LIMITS) -> None:
        self._root, self._limits = root.absolute(), limits
        self.uri = self.place = self._root.as_uri()
        self._kernel = kernel_id()
        self._has_flock = True

    @property
    def conditional_writes(self) -> bool:
        return self._has_flock

    def check(self) -> None:
        created: list[Path] = []
        try:
            with _failures(self._root):
                make_folders(self._root, created)
                self._probe()
        finally:
            for folder in reversed(created):
                with suppress(OSError):
                    folder.rmdir()

    def get(self, key: str, max_bytes: int = MAX_GET_BYTES) -> tuple[bytes, str]:
        path = self._path(key)
        with _failures(path), _absence(path), path.open("rb") as file:
            content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise Damaged(f"{path} has more than {max_bytes} bytes: it is not what it should be")
        return content, _digest(content)

    def etag(self, key: str) -> str | None:
        path = self._path(key)
        with _failures(path):
            return _digest_of_file(path)

    def put(self, key: str, data: Data) -> None:
        path = self._path(key)
        with _failures(path):
            self._write(path, data)

    def put_if_absent(self, key: str, content: bytes) -> str | None:
        path = self._path(key)
        with _failures(path), self._write_lock():
            if path.exists():
                return None
            self._write(path, [content])
        return _digest(content)

    def put_if_match(self, key: str, content: bytes, etag: str) -> str | None:
        path = self._path(key)
        with _failures(path), self._write_lock():
            if _digest_of_file(path) != etag:
                return None
            self._write(path, [content])
        return _digest(content)

    def fetch(self, key: str, directory: Path, alive: Callable[[], None] = lambda: None) -> Path:
        path = self._path(key)
        with _failures(path), _absence(path), path.open("rb"):
            return path

    def blocks(self, key: str, start: int, end: int) -> Iterator[bytes]:
        path = self._path(key)
        with _failures(path), _absence(path), path.open("rb", buffering=0) as file:
            file.seek(start)
            while block := file.read(min(_BLOCK_BYTES, end - start)):
                start += len(block)
                yield block

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        folder = folder_of(prefix)
        top = self._path(folder.rstrip("/")) if folder else self._root
        found = []
        with _failures(top):
            for path, status in files_below(top):
                key = path.relative_to(self._root).as_posix()
                if is_key(key):
                    etag = f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"
                    found.append(ObjectInfo(key, status.st_size, etag))
        return iter(sorted(found, key=lambda info: info.key))

    def folders(self) -> Sequence[str]:
        with _failures(self._root), suppress(FileNotFoundError):
            return sorted(path.name for path in self._root.iterdir() if path.is_dir())
        return []

    def delete(self, keys: Sequence[str]) -> None:
        for path in [self._path(key) for key in keys]:
            with _failures(path):
                with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                    path.unlink()
                self._remove_empty_folders(path.parent)

    def move(self, source_key: str, target_key: str) -> None:
        source, target = self._path(source_key), self._path(target_key)
        with _failures(source):
            if regular_file(source) is None:
                raise NotFound(f"{source} does not exist")
        with _failures(target):
            make_folders(target.parent, [])
            source.replace(target)
            sync_folder(target.parent)
            sync_folder(source.parent)
            self._remove_empty_folders(source.parent)

    def half_written(self) -> Sequence[HalfWritten]:
        found = []
        with _failures(self._root):
            for path, status in files_below(self._root):
                if path.name.startswith(PARTIAL):
                    key = path.relative_to(self._root).as_posix()
                    found.append(HalfWritten(key, status.st_size, self._stale(path, status)))
        return found

    def discard(self, half: HalfWritten) -> None:
        path = self._root / half.key
        with _failures(path):
            try:
                path.unlink()
            except (FileNotFoundError, PermissionError) as error:
                log.info("%s is half written, and may stay: %s", path, error.strerror)
                return
            log.info("removed %s, which was half written", path)
            self._remove_empty_folders(path.parent)

    def free_bytes(self) -> int | None:
        place = self._root
        while not place.exists():
            place = place.parent
        with _failures(place):
            status = os.statvfs(place)
        return status.f_bavail * status.f_frsize

    def exclusive_lock(self) -> FileLock | None:
        path = self._root / _PROCESS_LOCK
        with _failures(path):
            descriptor = open_new(path, os.O_RDWR)
            locked = False
            try:
                locked = bool(try_flock(descriptor))
            finally:
                if not locked:
                    os.close(descriptor)
        return FileLock(descriptor, self._kernel) if locked else None

    def _path(self, key: str) -> Path:
        path = self._root / check_key(key)
        try:
            inside = path.resolve().is_relative_to(self._root.resolve())
        except RuntimeError as error:
            raise ConfigError(f"{path} is a symbolic link that leads round in a circle") from error
        if not inside:
            raise ConfigError(
                f"{path} leads out of {self._root} through a symbolic link: replace the link by "
                "what it points to, or point CHECKPOINT_URI there"
            )
        return path

    def _partial_path(self, folder: Path) -> Path:
        return folder / f"{PARTIAL}{self._kernel[:8]}-{secrets.token_hex(8)}"

    def _write(self, path: Path, data: Data) -> None:
        partial = self._partial_path(path.parent)
        descriptor = open_new(partial, os.O_WRONLY | os.O_EXCL)
        try:
            try_flock(descriptor)
            for buffer in data:
                write_all(descriptor, buffer)
            os.fsync(descriptor)
            try:
                partial.replace(path)
            except FileNotFoundError as error:
                raise Unavailable(f"{path} was removed by someone while it was written") from error
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise
        finally:
            os.close(descriptor)
        sync_folder(path.parent)

    @contextmanager
    def _write_lock(self) -> Iterator[None]:
        path = self._root / _WRITE_LOCK
        descriptor = open_new(path, os.O_RDWR)
        try:
            deadline = time.monotonic() + _LOCK_PATIENCE
            while self._has_flock and try_flock(descriptor) is False:
                if time.monotonic() > deadline:
                    raise Unavailable(f"{path} has been locked for {_LOCK_PATIENCE:.0f} s")
                time.sleep(_LOCK_POLL)
            yield
        finally:
            os.close(descriptor)

    def _probe(self) -> None:
        path = self._partial_path(self._root)
        content = os.urandom(_PROBE_BYTES)
        descriptor = open_new(path, os.O_RDWR | os.O_EXCL)
        try:
            self._has_flock = try_flock(descriptor) is not None
            write_all(descriptor, content)
            os.fsync(descriptor)
            if path.read_bytes() != content:
                raise Unavailable(f"{self._root} does not return what was written to it")
        finally:
            os.close(descriptor)
            path.unlink(missing_ok=True)

    def _stale(self, path: Path, status: os.stat_result) -> bool:
        """Whether a partial file is old, and not locked as far as this kernel can see."""
        same_kernel = path.name.startswith(f"{PARTIAL}{self._kernel[:8]}-")
        limits = self._limits
        stale_age = limits.stale_file if same_kernel else limits.stale_file_elsewhere
        if time.time() - status.st_mtime < stale_age:
            return False
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (FileNotFoundError, PermissionError):
            return False  # it is gone by now, or another user owns it
        try:
            return bool(try_flock(descriptor))
        finally:
            os.close(descriptor)

    def _remove_empty_folders(self, folder: Path) -> None:
        while folder != self._root:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent


@contextmanager
def _failures(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_stored_file(error, f"CHECKPOINT_URI: {path}") from error


@contextmanager
def _absence(path: Path) -> Iterator[None]:
    """Raise NotFound also for a folder, and where the key has a folder and the disk a file."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise NotFound(f"{path} does not exist") from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest_of_file(path: Path) -> str | None:
    """What `_digest` gives for the content, which is not read into memory; None without a file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
