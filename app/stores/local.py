"""A run in a folder: on a disk, a mounted volume or a network file system.

Files are written beside their target as `.store-partial-<kernel>-<random>`, synced,
renamed, and the folder synced, so that a name never shows half a file, not even after
a power cut. The writer keeps an flock on the partial file; one that is old and not
locked is stale: a killed process left it.

Conditional writes compare and replace under an flock on `.store-lock`. A file system
without flock makes `conditional_writes` False.
"""

import errno
import fcntl
import hashlib
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from app.errors import ConfigError, Damaged, NotFound, Unavailable
from app.failures import from_os_error
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

log = logging.getLogger(__name__)

PARTIAL = f"{RESERVED}partial-"
_WRITE_LOCK = f"{RESERVED}lock"
_PROCESS_LOCK = f"{RESERVED}writer"

_LOCK_PATIENCE = 10.0  # seconds; a compare-and-replace of a small file takes milliseconds
_LOCK_POLL = 0.005  # seconds
_PROBE_BYTES = 65_536
# The first covers the moment between creating a partial file and locking it. The second is
# for files of another kernel, whose locks a network file system may not show.
_STALE = 60.0  # seconds
_STALE_ELSEWHERE = 86_400.0  # seconds
_NO_FLOCK = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class LocalStore:
    """See `app.stores.contract.Store` for the contract. `root` need not exist yet."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._kernel = kernel_id()
        self._has_flock = True

    @property
    def uri(self) -> str:
        return self._root.as_uri()

    @property
    def conditional_writes(self) -> bool:
        return self._has_flock

    def check(self) -> None:
        created: list[Path] = []
        try:
            with _failures(self._root):
                _make_folders(self._root, created)
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
            try:
                current = _digest(path.read_bytes())
            except FileNotFoundError:
                return None
            if current != etag:
                return None
            self._write(path, [content])
        return _digest(content)

    def fetch(self, key: str, directory: Path, alive: Callable[[], None] = lambda: None) -> Path:
        path = self._path(key)
        with _failures(path), _absence(path), path.open("rb"):
            return path

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        folder = folder_of(prefix)
        top = self._path(folder.rstrip("/")) if folder else self._root
        found = []
        with _failures(top):
            for path in _files(top):
                key = path.relative_to(self._root).as_posix()
                status = _regular_file(path)
                if status and is_key(key):
                    etag = f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"
                    found.append(ObjectInfo(key, status.st_size, etag))
        return iter(sorted(found, key=lambda info: info.key))

    def delete(self, keys: Sequence[str]) -> None:
        for path in [self._path(key) for key in keys]:
            with _failures(path):
                with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                    path.unlink()
                self._remove_empty_folders(path.parent)

    def move(self, source_key: str, target_key: str) -> None:
        source, target = self._path(source_key), self._path(target_key)
        with _failures(source):
            if _regular_file(source) is None:
                raise NotFound(f"{source} does not exist")
        with _failures(target):
            _make_folders(target.parent, [])
            source.replace(target)
            _sync_folder(target.parent)
            _sync_folder(source.parent)
            self._remove_empty_folders(source.parent)

    def half_written(self) -> Sequence[HalfWritten]:
        found = []
        with _failures(self._root):
            for path in _files(self._root):
                status = _regular_file(path) if path.name.startswith(PARTIAL) else None
                if status:
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

    def exclusive_lock(self) -> "FileLock | None":
        path = self._root / _PROCESS_LOCK
        with _failures(path):
            descriptor = _create(path, os.O_RDWR)
            locked = False
            try:
                locked = bool(_try_flock(descriptor))
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

    def _write(self, path: Path, data: Data) -> None:
        partial = path.with_name(f"{PARTIAL}{self._kernel[:8]}-{secrets.token_hex(8)}")
        descriptor = _create(partial, os.O_WRONLY | os.O_EXCL)
        try:
            _try_flock(descriptor)
            for buffer in data:
                _write_all(descriptor, buffer)
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
        _sync_folder(path.parent)

    @contextmanager
    def _write_lock(self) -> Iterator[None]:
        path = self._root / _WRITE_LOCK
        descriptor = _create(path, os.O_RDWR)
        try:
            deadline = time.monotonic() + _LOCK_PATIENCE
            while self._has_flock and _try_flock(descriptor) is False:
                if time.monotonic() > deadline:
                    raise Unavailable(f"{path} has been locked for {_LOCK_PATIENCE:.0f} s")
                time.sleep(_LOCK_POLL)
            yield
        finally:
            os.close(descriptor)

    def _probe(self) -> None:
        path = self._root / f"{PARTIAL}{self._kernel[:8]}-{secrets.token_hex(8)}"
        content = os.urandom(_PROBE_BYTES)
        descriptor = _create(path, os.O_RDWR | os.O_EXCL)
        try:
            self._has_flock = _try_flock(descriptor) is not None
            _write_all(descriptor, content)
            os.fsync(descriptor)
            if path.read_bytes() != content:
                raise Unavailable(f"{self._root} does not return what was written to it")
        finally:
            os.close(descriptor)
            path.unlink(missing_ok=True)

    def _stale(self, path: Path, status: os.stat_result) -> bool:
        """Whether a partial file is old, and not locked as far as can be seen here."""
        same_kernel = path.name.startswith(f"{PARTIAL}{self._kernel[:8]}-")
        if time.time() - status.st_mtime < (_STALE if same_kernel else _STALE_ELSEWHERE):
            return False
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (FileNotFoundError, PermissionError):
            return False  # gone meanwhile, or another user's
        try:
            return bool(_try_flock(descriptor))
        finally:
            os.close(descriptor)

    def _remove_empty_folders(self, folder: Path) -> None:
        while folder != self._root:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent


class FileLock:
    """An flock. `scope` names kernel and mounted file system: where one of them differs,
    flock need not keep two processes apart."""

    def __init__(self, descriptor: int, kernel: str) -> None:
        self._descriptor: int | None = descriptor
        self.scope = f"{kernel}/{os.fstat(descriptor).st_dev:x}"

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def kernel_id() -> str:
    """The running kernel's random boot id, the same in all its containers.

    Where there is none, a random text: then no two processes seem to share a kernel.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return secrets.token_hex(16)


@contextmanager
def _failures(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_os_error(error, f"CHECKPOINT_URI: {path}") from error


@contextmanager
def _absence(path: Path) -> Iterator[None]:
    """A folder, or a file where the key has a folder, means: no such object."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise NotFound(f"{path} does not exist") from error


def _create(path: Path, flags: int) -> int:
    """Open `path` for writing, with its folders."""
    for last in (False, False, True):
        try:
            _make_folders(path.parent, [])
            return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            # Another process removed the folder, which was empty, in between.
            if last:
                raise
    raise AssertionError("unreachable")


def _make_folders(folder: Path, created: list[Path]) -> None:
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        created.append(path)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems sync folders by themselves and refuse to be asked.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, buffer: bytes | memoryview) -> None:
    view = memoryview(buffer).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]


def _try_flock(descriptor: int) -> bool | None:
    """True: locked. False: another holder. None: this file system has no flock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return None
        raise
    return True


def _files(top: Path) -> Iterator[Path]:
    """Everything below `top` that is not a folder. What vanishes meanwhile is left out."""

    def on_error(error: OSError) -> None:
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise error

    for folder, _, names in os.walk(top, onerror=on_error):
        for name in names:
            yield Path(folder, name)


def _regular_file(path: Path) -> os.stat_result | None:
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
