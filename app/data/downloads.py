"""Files that a URI names: listed first, then fetched one by one while they are read.

A listing gives each file's size and its ETag, and these are the fingerprint. A file is fetched
when its turn comes, the next one in the background, and removed when it has been read: two
files of a corpus are on the disk, whatever its size.
"""

import posixpath
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from app.data.data_dir import DataDir, own_folder
from app.data.remote import Remote, RemoteFile, Restarted, changed
from app.data.remote_s3 import S3Objects
from app.data.remote_web import WebFile
from app.data.retries import Backoff
from app.errors import ConfigError, Damaged, NotFound, Unavailable
from app.failures import disk_failures


@dataclass(frozen=True)
class RemoteFiles:
    """Listed files of one server, in order."""

    remote: Remote
    listed: tuple[RemoteFile, ...]
    data_dir: Path
    alive: Callable[[], None]

    @property
    def names(self) -> list[str]:
        return [file.name for file in self.listed]

    @property
    def places(self) -> list[str]:
        return [file.uri for file in self.listed]

    def origins(self) -> Mapping[str, str]:
        return {file.uri: file.uri for file in self.listed}

    def digests(self) -> Mapping[str, str]:
        return {file.name: f"{file.size} {file.version}" for file in self.listed}

    def paths(self, first: int) -> Generator[Path, None, None]:
        """As `Files.paths`. Raises AccessDenied, Unavailable or ConfigError for DATA_DIR too."""
        data_dir = DataDir(self.data_dir)
        place = data_dir.setting
        with disk_failures(place), own_folder(data_dir.downloads) as folder:

            def begin(number: int) -> "_Fetching | None":
                if number >= len(self.listed):
                    return None
                file = self.listed[number]
                target = folder / f"{number:06d}-{posixpath.basename(file.name)}"
                return _Fetching(
                    lambda stopped: fetch(self.remote, file, target, place, stopped, self.alive)
                )

            current = begin(first)
            try:
                for number in range(first, len(self.listed)):
                    assert current is not None
                    path = current.result()
                    current = begin(number + 1)
                    yield path
                    path.unlink()
            finally:
                if current is not None:
                    current.stopped.set()


class _Fetching:
    """A download in the background. It ends with the process, or when it is told to."""

    def __init__(self, work: Callable[[threading.Event], Path]) -> None:
        self.stopped = threading.Event()
        self._outcome: Path | BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def result(self) -> Path:
        self._thread.join()
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome

    def _run(self, work: Callable[[threading.Event], Path]) -> None:
        try:
            self._outcome = work(self.stopped)
        except BaseException as error:  # noqa: BLE001 - raised again by `result`
            self._outcome = error


def fetch(
    remote: Remote,
    file: RemoteFile,
    target: Path,
    place: str,
    stopped: threading.Event,
    alive: Callable[[], None],
) -> Path:
    """`file` at `target`, whole. A transfer that breaks off goes on where it was.

    `place` names the folder for messages; `alive` is called for each block. Raises what
    `Remote.open` raises, some of it after several tries; Unavailable if it was told to stop.
    """
    backoff = Backoff()
    furthest = 0
    with disk_failures(place), target.open("wb") as output:
        while output.tell() < file.size:
            try:
                with remote.open(file, output.tell()) as blocks:
                    for block in blocks:
                        output.write(block)
                        alive()
                        if stopped.is_set():
                            raise Unavailable(f"{file.uri}: no longer needed")
                if output.tell() < file.size:
                    raise Unavailable(f"DATASET: {file.uri}: the connection broke off")
            except (Restarted, Damaged) as error:
                output.seek(0)
                output.truncate()
                if isinstance(error, Damaged):  # not what was sent: something on the way
                    backoff.failed(error)
            except Unavailable as error:
                if stopped.is_set():
                    raise
                if output.tell() > furthest:
                    furthest = output.tell()
                    backoff.worked()
                backoff.failed(error)
        if output.tell() > file.size:
            raise changed(file)
    return target


def list_remote(
    uri: str, data_dir: Path, suffixes: Sequence[str], alive: Callable[[], None]
) -> RemoteFiles:
    """The files at `uri`: s3:// (object, prefix or glob), http:// or https://.

    Raises ConfigError (another scheme, or no file of ours), NotFound, AccessDenied, Unavailable.
    """
    setting = f"DATASET={uri}"
    scheme = urlsplit(uri).scheme
    if scheme == "s3":
        remote: S3Objects | WebFile = S3Objects(setting)
    elif scheme in ("http", "https"):
        remote = WebFile(setting)
    else:
        raise ConfigError(f"{setting}: URIs start with s3://, https://, http:// or file://")
    listed = remote.list(uri, suffixes)
    if not listed:
        raise NotFound(f"{setting}: no object matches (of {', '.join(suffixes)})")
    if not all(file.name.endswith(tuple(suffixes)) for file in listed):
        raise ConfigError(f"{setting}: files end with {', '.join(suffixes)}")
    return RemoteFiles(remote, tuple(listed), data_dir, alive)
