"""The files of tokens that an index names: read as one long array, compared with the index, made.

Each file is a shard: packed little-endian uint16 token ids and nothing else (see `shard_index`).
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.data.data_dir import write_durably
from app.data.shard_index import (
    DTYPE,
    SPLITS,
    NamedShard,
    Seal,
    Shard,
    ShardIndex,
    Split,
    Tally,
    read_index,
    write_index,
)
from app.errors import AccessDenied, AppError, Damaged, Unavailable

SHARD_TOKENS = 1 << 22  # 8 MiB: some seconds of tokenizing

Tokens = npt.NDArray[np.uint16]

_MOST_OPEN = 64  # files at once: a window of sequences lies in a few shards


class TokenShards:
    """The tokens of one split as one long array, which grows when the index on disk grows.

    Before somebody reads from a file, `verify` has compared it with the index; here only its size
    is looked at. A file that is cut or lost afterwards is found where it is read.
    """

    def __init__(self, directory: Path, split: Split, index: ShardIndex) -> None:
        self._directory, self._split, self._index = directory, split, index
        self._files: dict[int, _ShardFile] = {}

    @property
    def n_tokens(self) -> int:
        return self._index.n_tokens(self._split)

    def read(self, start: int, length: int) -> Tokens:
        """The tokens [start, start + length), from as many shards as they lie in.

        Raises IndexError outside [0, n_tokens], Damaged for a file that is missing or has
        another size, AccessDenied or Unavailable for one that cannot be read.
        """
        return self.read_rows(np.array([start]), length)[0]

    def read_rows(self, starts: npt.NDArray[np.int64], length: int) -> Tokens:
        """As `read`, for (B,) starts at once: (B, length)."""
        self._reach(int(starts.min()), int(starts.max()), length)
        result = np.empty((len(starts), length), dtype=DTYPE)
        numbers = np.searchsorted(self._index.ends[self._split], starts, side="right").tolist()
        content, size = result.reshape(-1).view(np.uint8).data, length * DTYPE.itemsize
        for row, start in enumerate(starts.tolist()):
            part = content[row * size : (row + 1) * size]
            self._fill(part, start * DTYPE.itemsize, numbers[row])
        return result.astype(np.uint16, copy=False)

    def _reach(self, first: int, last: int, length: int) -> None:
        if last + length > self.n_tokens:  # the preparation may have made more meanwhile
            index = read_index(self._directory, self._index.source, self._index.tokenizer)
            if index.continues(self._index):
                self._index = index
        if first < 0 or length < 0 or last + length > self.n_tokens:
            raise IndexError(f"tokens {first} to {last + length} of {self.n_tokens}")

    def _fill(self, row: memoryview, start: int, number: int) -> None:
        """Fill `row` with the bytes of the split from `start` on; they begin in shard `number`."""
        ends, shards = self._index.ends[self._split], self._index.shards[self._split]
        while len(row):
            shard = shards[number].shard
            offset = start - (int(ends[number]) * DTYPE.itemsize - shard.n_bytes)
            part = row[: shard.n_bytes - offset]
            self._read(number, part, offset)
            row, start, number = row[len(part) :], start + len(part), number + 1

    def _read(self, number: int, part: memoryview, offset: int) -> None:
        file = self._files.pop(number, None)
        try:
            if file is None or not _is_read(file, part, offset):
                # The file that has this name by now may be another one, that was brought again.
                named = self._index.shards[self._split][number]
                file = _ShardFile(self._directory / named.name, named.shard)
                file.read_into(part, offset)
        except AppError as error:
            raise type(error)(f"{error}: start again: it is brought again") from error
        if len(self._files) == _MOST_OPEN:
            del self._files[next(iter(self._files))]
        self._files[number] = file  # the file that was used last is the last in the dictionary

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # a process that loads data opens the files itself


class _ShardFile:
    """A shard that is open for reading.

    It is not mapped into memory. Where a mapped file is cut, or its disk fails, the kernel ends the
    process that touches it (SIGBUS): without a word, and without a commit. A system call for each
    part says what is wrong.
    """

    def __init__(self, path: Path, shard: Shard) -> None:
        """Raises Damaged, AccessDenied, Unavailable; so does `read_into`."""
        self._path = path
        _check_size(path, shard)
        with _reading(path):
            self._file = path.open("rb", buffering=0)
            self._descriptor = self._file.fileno()

    def read_into(self, part: memoryview, offset: int) -> None:
        """Fill `part` with the bytes of the file from `offset` on."""
        try:
            while len(part):
                count = os.preadv(self._descriptor, [part], offset)
                if not count:
                    raise Damaged(f"{self._path} was cut: it ends before byte {offset + len(part)}")
                part, offset = part[count:], offset + count
        except OSError as error:
            raise _failure(self._path, error) from error


def _is_read(file: _ShardFile, part: memoryview, offset: int) -> bool:
    try:
        file.read_into(part, offset)
    except AppError:
        return False
    return True


def verify(directory: Path, named: NamedShard) -> bytes:
    """Read a shard and compare it with the index: its content.

    Raises Damaged if the file is missing or its size or SHA-256 is not the recorded one,
    AccessDenied or Unavailable if it cannot be read.
    """
    path = directory / named.name
    _check_size(path, named.shard)
    with _reading(path):
        content = path.read_bytes()
    if not named.shard.matches(content):
        raise Damaged(f"{path} was changed (SHA-256 differs)")
    return content


def is_missing(directory: Path, named: NamedShard) -> bool:
    """Whether there is no such file. A file that cannot be looked at counts as there."""
    try:
        (directory / named.name).stat()
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return False


def _check_size(path: Path, shard: Shard) -> None:
    with _reading(path):
        size = path.stat().st_size
    if size != shard.n_bytes:
        raise Damaged(f"{path} has {size} bytes, not {shard.n_bytes}")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _failure(path, error) from error


def _failure(path: Path, error: OSError) -> AppError:
    if isinstance(error, FileNotFoundError):
        return Damaged(f"{path} is missing")
    kind = AccessDenied if isinstance(error, PermissionError) else Unavailable
    return kind(f"{path} cannot be read ({error.strerror or error})")


class ShardWriter:
    """Adds seals, and the shards that they name, to `directory`, where the index is `index`."""

    def __init__(self, directory: Path, index: ShardIndex) -> None:
        self._directory = directory
        self.index = index
        self._pending: dict[Split, list[Tokens]] = {split: [] for split in SPLITS}
        self._n_pending: dict[Split, int] = dict.fromkeys(SPLITS, 0)

    def append(self, split: Split, tokens: Tokens) -> None:
        self._pending[split].append(tokens)
        self._n_pending[split] += len(tokens)

    def move(self, source: Split, target: Split) -> None:
        """Count what was appended to `source` since the last seal as appended to `target`."""
        for tokens in self._pending[source]:
            self.append(target, tokens)
        self._pending[source], self._n_pending[source] = [], 0

    def pending(self) -> dict[Split, tuple[Tokens, ...]]:
        """What was appended since the last seal. Later calls do not change the answer."""
        return {split: tuple(parts) for split, parts in self._pending.items()}

    def n_pending(self, split: Split) -> int:
        return self._n_pending[split]

    def n_tokens(self, split: Split) -> int:
        """Sealed and pending."""
        return self.index.n_tokens(split) + self.n_pending(split)

    def seal(self, tally: Tally, *, complete: bool = False) -> None:
        """Write what was appended to files and name them in the index.

        With it, the source is sealed as far as `tally` says. Raises OSError.
        """
        seal, files = self._pack(tally)
        self.index = replace(self._write(seal, files), complete=complete)
        self._pending = {split: [] for split in SPLITS}
        self._n_pending = dict.fromkeys(SPLITS, 0)
        write_index(self._directory, self.index)

    def restore(self, expected: Seal, tally: Tally) -> bool:
        """Write the files of the `expected` seal again, without the index.

        Returns whether what was appended makes just that seal; if not, nothing is written.
        Raises OSError.
        """
        seal, files = self._pack(tally)
        if seal != expected:
            return False
        self._write(seal, files)
        return True

    def _pack(self, tally: Tally) -> tuple[Seal, dict[Split, Tokens]]:
        files: dict[Split, Tokens] = {
            split: np.concatenate(self._pending[split]).astype(DTYPE, copy=False)
            for split in SPLITS
            if self._n_pending[split]
        }
        shards = {
            split: Shard(len(data), hashlib.sha256(data.data).hexdigest())
            for split, data in files.items()
        }
        train, validation = shards.get("train"), shards.get("validation")
        place = None if tally.position is None else dict(tally.position)
        counts = (tally.pieces, tally.documents, tally.text_bytes)
        return Seal(*counts, train, validation, place), files

    def _write(self, seal: Seal, files: Mapping[Split, Tokens]) -> ShardIndex:
        """Write the files that follow the index: the index with `seal`, which names them."""
        index = replace(self.index, seals=(*self.index.seals, seal))
        for split, data in files.items():
            write_durably(self._directory / index.shards[split][-1].name, data.data)
        return index
