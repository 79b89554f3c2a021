"""DATASET as files: a path, folder or glob here, or objects that are fetched one by one."""

import glob
import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from app.data.downloads import list_remote
from app.data.pieces import Pieces, Placed, PlacedPieces, Position
from app.data.readers import SUFFIXES, file_pieces, reading
from app.errors import ConfigError, Damaged, NotFound
from app.settings.variables import DataSettings

WHOLE_BYTES = 64 * 2**20
_BLOCKS, _BLOCK = 256, 1 << 16


class Files(Protocol):
    """Files in an order that never changes, by their names relative to what they share."""

    @property
    def names(self) -> list[str]: ...

    @property
    def places(self) -> list[str]:
        """Where each of them is, in words for messages."""
        ...

    def origins(self) -> Mapping[str, str]: ...

    def digests(self) -> Mapping[str, str]:
        """Name → what changes when the content does."""
        ...

    def paths(self, first: int) -> Generator[Path, None, None]:
        """Local copies from number `first` on. Each is there until the next one is asked for."""
        ...


@dataclass(frozen=True)
class FileSource:
    """Files of .txt, .jsonl and .parquet as one sequence of pieces."""

    pinned: str
    files: Files
    column: str
    revision: str | None = None

    def origins(self) -> Mapping[str, str]:
        return self.files.origins()

    def identity(self) -> Mapping[str, str]:
        rows = any(not _is_text(name) for name in self.files.names)
        column = {"TEXT_COLUMN": self.column} if rows else {}
        return {**self.files.digests(), **column}

    def pieces(self, after: Position | None) -> Pieces:
        return PlacedPieces(self._placed(after or {}), after)

    def _placed(self, after: Position) -> Generator[Placed]:
        inside = dict(after)
        first = int(inside.pop("file", 0))
        with closing(self.files.paths(first)) as paths:
            for number, path in enumerate(paths, start=first):
                for piece, place in file_pieces(
                    path, self.files.places[number], self.column, inside
                ):
                    yield piece, {"file": number, **place}
                inside = {}


def open_files(settings: DataSettings, alive: Callable[[], None]) -> FileSource:
    """List what a path, folder, glob or URI names. Nothing is read or fetched yet.

    `alive` is called for each block that is fetched or hashed later.
    Raises NotFound, AccessDenied, Unavailable, or ConfigError (not a file of ours, or one file
    under two names).
    """
    spec = settings.dataset.removeprefix("file://")
    files: Files
    if "://" in spec:
        files = list_remote(spec, settings.data_dir, SUFFIXES, alive)
    else:
        files = LocalFiles.find(Path(spec).expanduser(), spec, alive)
    return FileSource(settings.dataset, files, settings.text_column)


@dataclass(frozen=True)
class LocalFiles:
    """Files on this machine, with their sizes and times when they were listed."""

    found: tuple[Path, ...]
    stats: tuple[os.stat_result, ...]
    alive: Callable[[], None]

    @classmethod
    def find(cls, path: Path, spec: str, alive: Callable[[], None]) -> "LocalFiles":
        with reading(str(path)):
            found = _listed(path, spec)
            stats = tuple(file.stat() for file in found)
        first_by_inode: dict[tuple[int, int], Path] = {}
        for file, stat in zip(found, stats, strict=True):
            other = first_by_inode.setdefault((stat.st_dev, stat.st_ino), file)
            if other is not file:
                raise ConfigError(
                    f"DATASET={spec}: {other} and {file} are the same file, which would be read "
                    "twice: remove one, or name the files by a glob"
                )
        return cls(tuple(found), stats, alive)

    @property
    def names(self) -> list[str]:
        root = os.path.commonpath([path.parent for path in self.found])
        return [path.relative_to(root).as_posix() for path in self.found]

    @property
    def places(self) -> list[str]:
        return [str(path) for path in self.found]

    def origins(self) -> Mapping[str, str]:
        return {
            f"inode {stat.st_dev} {stat.st_ino}": str(path)
            for path, stat in zip(self.found, self.stats, strict=True)
        }

    def digests(self) -> Mapping[str, str]:
        digest = partial(content_digest, alive=self.alive)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return dict(zip(self.names, pool.map(digest, self.found), strict=True))

    def paths(self, first: int) -> Generator[Path, None, None]:
        for path, listed in zip(self.found[first:], self.stats[first:], strict=True):
            _check_unchanged(path, listed, "after it was listed")
            yield path
            _check_unchanged(path, listed, "while it was read")


def _check_unchanged(path: Path, listed: os.stat_result, when: str) -> None:
    with reading(str(path)):
        now = path.stat()
    if (now.st_size, now.st_mtime_ns) != (listed.st_size, listed.st_mtime_ns):
        raise Damaged(f"{path} was changed {when}: start again")


def content_digest(path: Path, alive: Callable[[], None]) -> str:
    """Size and SHA-256 (hex) of a file of up to 64 MiB, of blocks of it if it is larger.

    Of a large file 256 blocks of 64 KiB count, the first and the last one among them, evenly
    spaced: 10 GB would take a node longer than it takes to begin. A change that keeps the size
    and lies between the blocks is not seen. The file's time does not count: a copy on a
    replacement node has another one.
    """
    with reading(str(path)), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256()
        if size <= WHOLE_BYTES:
            while content := file.read(_BLOCK):
                digest.update(content)
                alive()
            return f"{size} {digest.hexdigest()}"
        for block in range(_BLOCKS):
            file.seek((size - _BLOCK) * block // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK))
            alive()
        return f"{size} blocks {digest.hexdigest()}"


def _listed(path: Path, spec: str) -> list[Path]:
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise ConfigError(f"DATASET={spec}: files end with {', '.join(SUFFIXES)}")
        return [path]
    if path.is_dir():
        candidates: Iterable[Path] = _visible_files(path)
    else:
        candidates = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207 - absolute
    found = sorted(file for file in candidates if file.name.endswith(SUFFIXES))
    found = [file for file in found if file.is_file()]
    if not found:
        what = f"holds no file of {', '.join(SUFFIXES)}" if path.is_dir() else "does not exist"
        raise NotFound(f"DATASET={spec} {what}")
    return found


def _visible_files(folder: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:  # a subfolder left out in silence would be other data
        raise error

    for place, subfolders, names in os.walk(folder, onerror=stop):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _is_text(name: str) -> bool:
    return name.endswith((".txt", ".txt.gz", ".txt.zst"))
