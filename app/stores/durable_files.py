"""Files, folders and locks of a volume, as `LocalStore` needs them: durable, and never half there.

What is created here survives a power cut once the call has returned: a new folder is synced
into its parent at once, and callers sync the folder of a file that they renamed.
"""

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

_NO_FLOCK = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class FileLock:
    """An flock that is held until `release`.

    `scope` names the kernel and the mounted file system. Between two processes that differ in
    one of them, flock is no reliable protection.
    """

    def __init__(self, descriptor: int, kernel: str) -> None:
        self._descriptor: int | None = descriptor
        self.scope = f"{kernel}/{os.fstat(descriptor).st_dev:x}"

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def try_flock(descriptor: int) -> bool | None:
    """True: locked. False: somebody else holds the lock. None: this file system has no flock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return None
        raise
    return True


def kernel_id() -> str:
    """The random boot id of the running kernel, which is the same in all its containers.

    Where the kernel has none, the result is random: no two processes seem to share a kernel.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return secrets.token_hex(16)


def open_new(path: Path, flags: int) -> int:
    """Open `path` for writing, making it and its folders where they are missing."""
    for last in (False, False, True):
        try:
            make_folders(path.parent, [])
            return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            # The folder was empty, and another process removed it in between.
            if last:
                raise
    raise AssertionError("unreachable")


def make_folders(folder: Path, created: list[Path]) -> None:
    """Make `folder` and its parents where they are missing.

    Each folder that was made is appended to `created`, also where the next one fails.
    """
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        created.append(path)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems sync folders by themselves and refuse to be asked.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_all(descriptor: int, buffer: bytes | memoryview) -> None:
    """Write the whole buffer: one call to the system may take only a part of it."""
    view = memoryview(buffer).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]


def blocks_of(path: Path, alive: Callable[[], None]) -> Iterator[bytes]:
    """The content of a file. `alive` is called after each MiB. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        while block := file.read(1 << 20):
            yield block
            alive()


def files_below(top: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every regular file below `top`. A file that vanishes in the meantime is left out."""

    def on_error(error: OSError) -> None:
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise error

    for folder, _, names in os.walk(top, onerror=on_error):
        for name in names:
            path = Path(folder, name)
            if status := regular_file(path):
                yield path, status


def regular_file(path: Path) -> os.stat_result | None:
    """The status of a regular file; None for anything else, a link among it."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None
