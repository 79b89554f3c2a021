"""DATASET as files, wherever they lie; and those of a path, folder or glob on this machine."""

import glob
import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from app.data.limits import DEFAULT_LIMITS, DataLimits
from app.data.pieces import Pieces, Placed, PlacedPieces, Position
from app.data.readers import FILE_ENDINGS, TXT_ENDINGS, file_failures, file_pieces
from app.errors import ConfigError, Damaged, NotFound
from app.settings.local_paths import local_path

WHOLE_BYTES = 64 * 2**20

_DIGESTED_BLOCKS = 256


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file of a source as it was when it was listed.

    `place` is its path or URI. `name` is relative to the folder that all files of the source
    are in. `origin` is the same for one file by whatever name it is listed. `size` is in
    bytes. `version` changes when the file is written: an ETag or a time.
    """

    place: str
    name: str
    origin: str
    size: int
    version: str


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


@dataclass(frozen=True)
class FileSource:
    """Files of .txt, .jsonl and .parquet as one sequence of pieces."""

    pinned: str
    files: Files
    column: str
    limits: DataLimits = DEFAULT_LIMITS
    revision: str | None = None

    def origins(self) -> Mapping[str, str]:
        return {file.origin: file.place for file in self.files.listed}

    def identity(self) -> Mapping[str, str]:
        names = [file.name for file in self.files.listed]
        has_rows = not all(name.endswith(TXT_ENDINGS) for name in names)
        column = {"TEXT_COLUMN": self.column} if has_rows else {}
        return {**dict(zip(names, self.files.digests(), strict=True)), **column}

    def pieces(self, after: Position | None) -> Pieces:
        return PlacedPieces(self._placed(after or {}), after)

    def _placed(self, after: Position) -> Generator[Placed]:
        inside = dict(after)
        first = int(inside.pop("file", 0))
        with closing(self.files.paths(first)) as paths:
            for number, path in enumerate(paths, start=first):
                place = self.files.listed[number].place
                for piece, position in file_pieces(path, place, self.column, inside, self.limits):
                    yield piece, {"file": number, **position}
                inside = {}


@dataclass(frozen=True)
class LocalFiles:
    """Files on this machine. `alive` is called for each block of them that is hashed."""

    listed: tuple[ListedFile, ...]
    alive: Callable[[], None]
    limits: DataLimits = DEFAULT_LIMITS

    def digests(self) -> Iterable[str]:
        def digest(file: ListedFile) -> str:
            return content_digest(Path(file.place), self.alive, self.limits.digested_bytes)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(digest, self.listed))

    def paths(self, first: int) -> Generator[Path, None, None]:
        for file in self.listed[first:]:
            _check_unchanged(file, "after it was listed")
            yield Path(file.place)
            _check_unchanged(file, "while it was read")


def list_local(
    spec: str, alive: Callable[[], None], limits: DataLimits = DEFAULT_LIMITS
) -> LocalFiles:
    """List what a path, folder or glob names. Nothing is read yet.

    Raises NotFound, AccessDenied, Unavailable, or ConfigError (not a file of ours, or one file
    under two names).
    """
    path = local_path(spec)
    with file_failures(str(path)):
        found = _matching(path, spec)
        stats = [file.stat() for file in found]
    root = os.path.commonpath([file.parent for file in found])
    by_origin: dict[str, ListedFile] = {}
    for file, stat in zip(found, stats, strict=True):
        listed = ListedFile(
            place=str(file),
            name=file.relative_to(root).as_posix(),
            origin=f"inode {stat.st_dev} {stat.st_ino}",
            size=stat.st_size,
            version=str(stat.st_mtime_ns),
        )
        other = by_origin.setdefault(listed.origin, listed)
        if other is not listed:
            raise ConfigError(
                f"DATASET={spec}: {other.place} and {file} are the same file, which would be read "
                "twice: remove one, or name the files by a glob"
            )
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


def _check_unchanged(file: ListedFile, when: str) -> None:
    with file_failures(file.place):
        now = Path(file.place).stat()
    if (now.st_size, str(now.st_mtime_ns)) != (file.size, file.version):
        raise Damaged(f"{file.place} was changed {when}: start again")


def _matching(path: Path, spec: str) -> list[Path]:
    if path.is_file():
        if not path.name.endswith(FILE_ENDINGS):
            raise ConfigError(f"DATASET={spec}: files end with {', '.join(FILE_ENDINGS)}")
        return [path]
    if path.is_dir():
        candidates: Iterable[Path] = _visible_files(path)
    else:
        candidates = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207 - absolute
    found = sorted(file for file in candidates if file.name.endswith(FILE_ENDINGS))
    found = [file for file in found if file.is_file()]
    if not found:
        endings = ", ".join(FILE_ENDINGS)
        what = f"holds no file of {endings}" if path.is_dir() else "does not exist"
        raise NotFound(f"DATASET={spec} {what}")
    return found


def _visible_files(folder: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:  # to leave a subfolder out in silence would be other data
        raise error

    for place, subfolders, names in os.walk(folder, onerror=stop):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))
