"""DATASET as files, wherever they lie; and those of a path, folder or glob on this machine."""

import errno
import hashlib
import logging
import os
import stat
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from app.data.kinds import FileKind, kind_of
from app.data.limits import DEFAULT_LIMITS, DataLimits
from app.data.patterns import At, What, choose, names_in_common_folder, say_empty
from app.data.pieces import Pieces, Placed, PlacedPieces, Position
from app.data.readers import checked_head, file_failures, file_pieces
from app.data.stand_ins import compression_of, is_page
from app.errors import ConfigError, Damaged
from app.settings.local_paths import local_path

log = logging.getLogger(__name__)

WHOLE_BYTES = 64 * 2**20

_DIGESTED_BLOCKS = 256
_PAGES_NAMED = 3  # in lines of their own


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file of a source as it was when it was listed.

    `place` is its path or URI. `name` is relative to the folder that all files of the source
    are in, and its ending says what is in the file. `origin` is the same for one file by whatever
    name it is listed. `size` is in bytes. `version` changes when the file is written: an ETag or
    a time.
    """

    place: str
    name: str
    origin: str
    size: int
    version: str

    @property
    def kind(self) -> FileKind:
        kind = kind_of(self.name)
        assert kind is not None, "files with another ending are not listed"
        return kind


class Files(Protocol):
    """The files of a source, in an order that never changes: here, in a bucket, on the web."""

    @property
    def listed(self) -> Sequence[ListedFile]: ...

    def digests(self) -> Iterable[str]:
        """For each listed file, what changes when its content does."""
        ...

    def paths(self, first: int) -> Generator[Path, None, None]:
        """Local copies from number `first` on. Each is there until the next one is asked for.

        Raises Damaged or ConfigError for a file that is not as it was listed, NotFound,
        AccessDenied or Unavailable.
        """
        ...

    def check(self, number: int) -> None:
        """Raises Damaged if that file may have another content by now than when it was listed."""
        ...


@dataclass(frozen=True)
class FileSource:
    """Files of text, rows and tables as one sequence of pieces."""

    pinned: str
    files: Files
    column: str
    limits: DataLimits = DEFAULT_LIMITS
    revision: str | None = None

    def origins(self) -> Mapping[str, str]:
        return {file.origin: file.place for file in self.files.listed}

    def identity(self) -> Mapping[str, str]:
        names = [file.name for file in self.files.listed]
        has_rows = not all(file.kind.content == "text" for file in self.files.listed)
        column = {"TEXT_COLUMN": self.column} if has_rows else {}
        return {**dict(zip(names, self.files.digests(), strict=True)), **column}

    def pieces(self, after: Position | None) -> Pieces:
        return PlacedPieces(self._placed(after or {}), after)

    def _placed(self, after: Position) -> Generator[Placed]:
        inside = dict(after)
        first = int(inside.pop("file", 0))
        pages = 0
        with closing(self.files.paths(first)) as paths:
            for number, path in enumerate(paths, start=first):
                file = self.files.listed[number]
                head = checked_head(path, file.place, file.kind)
                if is_page(head):
                    pages += 1
                    _warn_of_page(file.place, pages)
                kind = replace(file.kind, compression=compression_of(head, file.kind))
                for piece, position in file_pieces(
                    path, file.place, kind, self.column, inside, self.limits
                ):
                    # Before anybody has it: its tokens may be shared by then, under the digest of
                    # the listed content.
                    self.files.check(number)
                    yield piece, {"file": number, **position}
                inside = {}


@dataclass(frozen=True)
class LocalFiles:
    """Files on this machine. `alive` is called for each block of them that is hashed."""

    listed: tuple[ListedFile, ...]
    alive: Callable[[], None]
    limits: DataLimits = DEFAULT_LIMITS

    def digests(self) -> Iterable[str]:
        """Raises ConfigError or Damaged for a file that begins as none of its kind can."""

        def digest(file: ListedFile) -> str:
            path = Path(file.place)
            checked_head(path, file.place, file.kind)
            return content_digest(path, self.alive, self.limits.digested_bytes)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(digest, self.listed))

    def paths(self, first: int) -> Generator[Path, None, None]:
        for file in self.listed[first:]:
            _check_unchanged(file, "after it was listed")
            yield Path(file.place)

    def check(self, number: int) -> None:
        file = self.listed[number]
        with suppress(OSError):
            # For each document of a corpus, so neither Path.stat nor what tells failures apart.
            if _version_of(os.stat(file.place)) == (file.size, file.version):  # noqa: PTH116
                return
        _check_unchanged(file, "while it was read")


@dataclass(frozen=True)
class LocalTree:
    """The folders of this machine, from `root` on. Links are followed.

    Raises AccessDenied or Unavailable, which name the folder.
    """

    root: Path

    def path(self, at: At) -> Path:
        return self.root.joinpath(*at)

    def place(self, at: At) -> str:
        return str(self.path(at))

    def what(self, at: At) -> What | None:
        path = self.path(at)
        with file_failures(str(path)):
            try:
                mode = path.stat().st_mode
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise
                return "dangling link" if path.is_symlink() else None
        if stat.S_ISREG(mode):
            return "file"
        return "folder" if stat.S_ISDIR(mode) else "special file"

    def entries(self, folder: At) -> Iterable[tuple[str, What]]:
        with file_failures(self.place(folder)), os.scandir(self.path(folder)) as found:
            plain: dict[str, What | None] = {
                entry.name: "file" if entry.is_file(follow_symlinks=False) else None
                for entry in found
            }
        for name, what in plain.items():
            if what := what or self.what((*folder, name)):
                yield name, what

    def identity(self, folder: At) -> object:
        with file_failures(self.place(folder)):
            found = self.path(folder).stat()
        return found.st_dev, found.st_ino


def list_local(
    spec: str, alive: Callable[[], None], limits: DataLimits = DEFAULT_LIMITS
) -> LocalFiles:
    """List what a path, folder or pattern names. Nothing is read yet.

    Raises NotFound, AccessDenied, Unavailable, or ConfigError (not a file of ours, or one file
    under two names).
    """
    path = local_path(spec)
    tree = LocalTree(Path(path.anchor))
    setting = f"DATASET={spec}"
    found = choose(tree, path.parts[bool(path.anchor) :], setting)
    by_origin: dict[str, ListedFile] = {}
    for at, name in zip(found, names_in_common_folder(found), strict=True):
        file = tree.path(at)
        with file_failures(str(file)):
            status = file.stat()
        listed = ListedFile(
            place=str(file),
            name=name,
            origin=f"inode {status.st_dev} {status.st_ino}",
            size=status.st_size,
            version=str(status.st_mtime_ns),
        )
        other = by_origin.setdefault(listed.origin, listed)
        if other is not listed:
            raise ConfigError(
                f"{setting}: {other.place} and {file} are the same file, which would be read "
                "twice: remove one, or name the files by a pattern"
            )
    say_empty(setting, [file.name for file in by_origin.values() if not file.size])
    return LocalFiles(tuple(by_origin.values()), alive, limits)


def content_digest(
    path: Path, alive: Callable[[], None], block: int = DataLimits.digested_bytes
) -> str:
    """Size and SHA-256 (hex) of a file of up to 64 MiB, or of blocks of a larger one.

    Of a larger file 256 blocks of 64 KiB count, evenly spaced, with the first and the last
    one among them: to hash 10 GB takes longer than all the rest of a start. A change that
    keeps the size and lies between the blocks is not seen. The file's time does not count,
    since a copy on a replacement node has another one.
    """
    with file_failures(str(path)), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256()
        if size <= WHOLE_BYTES:
            while content := file.read(block):
                digest.update(content)
                alive()
            return f"{size} {digest.hexdigest()}"
        for number in range(_DIGESTED_BLOCKS):
            file.seek((size - block) * number // (_DIGESTED_BLOCKS - 1))
            digest.update(file.read(block))
            alive()
        return f"{size} blocks {digest.hexdigest()}"


def _version_of(status: os.stat_result) -> tuple[int, str]:
    return status.st_size, str(status.st_mtime_ns)


def _check_unchanged(file: ListedFile, when: str) -> None:
    with file_failures(file.place):
        now = Path(file.place).stat()
    if _version_of(now) != (file.size, file.version):
        raise Damaged(f"{file.place} was changed {when}: start again")


def _warn_of_page(place: str, number: int) -> None:
    if number <= _PAGES_NAMED:
        also = "; further ones are not named" if number == _PAGES_NAMED else ""
        log.warning("DATASET: %s is a web page (HTML), and is read as text%s", place, also)
