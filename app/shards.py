"""Token ids on disk: packed uint16 shards and one index that says what is in them.

    train-00000.bin  train-00001.bin …   raw little-endian uint16, nothing else
    validation-00000.bin …               the same, for the held-out text
    index.json                           sizes, SHA-256, and how far the source is read

A shard is written whole, synced, and only then named in the index, which is replaced in
one step. A kill costs the tokens that were not sealed yet; the files that come out are
the same, byte for byte.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from app.errors import Damaged

INDEX = "index.json"
SHARD_TOKENS = 1 << 22  # 8 MiB: some seconds of tokenizing
FORMAT_VERSION = 2

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
Tokens = npt.NDArray[np.uint16]

_DTYPE = np.dtype("<u2")


@dataclass(frozen=True)
class Shard:
    """A sealed file; `sha256` is hexadecimal."""

    name: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """What index.json holds. `pieces` of the source are in the shards, not one more or less.

    `text_bytes` is the size of the text that became these tokens, in UTF-8, both splits.
    """

    source: str
    tokenizer: str
    pieces: int = 0
    documents: int = 0
    text_bytes: int = 0
    complete: bool = False
    shards: Mapping[Split, tuple[Shard, ...]] = field(
        default_factory=lambda: dict.fromkeys(SPLITS, ())
    )

    def n_tokens(self, split: Split) -> int:
        return sum(shard.tokens for shard in self.shards[split])


def read_index(directory: Path, source: str, tokenizer: str) -> ShardIndex:
    """The index in `directory`, or an empty one for these fingerprints if there is none.

    Raises Damaged if the file is not ours, or is of another source or tokenizer.
    """
    path = directory / INDEX
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        version = content.pop("format_version")
        shards = {split: tuple(Shard(**shard) for shard in content.pop(split)) for split in SPLITS}
        index = ShardIndex(**content, shards=shards)
    except FileNotFoundError:
        return ShardIndex(source=source, tokenizer=tokenizer)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"{path} is not readable: delete {directory} and start again") from error
    if (version, index.source, index.tokenizer) != (FORMAT_VERSION, source, tokenizer):
        raise Damaged(f"{path} is of another dataset or version: delete {directory}")
    return index


class ShardWriter:
    """Adds tokens to a directory, from where its index ends."""

    def __init__(self, directory: Path, index: ShardIndex) -> None:
        self._directory = directory
        self.index = index
        self._pending: dict[Split, list[Tokens]] = {split: [] for split in SPLITS}

    def append(self, split: Split, tokens: Tokens) -> None:
        self._pending[split].append(tokens)

    def n_pending(self, split: Split) -> int:
        return sum(len(tokens) for tokens in self._pending[split])

    def n_tokens(self, split: Split) -> int:
        """Sealed and pending."""
        return self.index.n_tokens(split) + self.n_pending(split)

    def seal(
        self, *, pieces: int, documents: int, text_bytes: int = 0, complete: bool = False
    ) -> None:
        """Make what was appended durable; it comes from the source's first `pieces` pieces.

        Raises OSError.
        """
        shards = dict(self.index.shards)
        for split in SPLITS:
            if self.n_pending(split):
                shards[split] = (*shards[split], self._write(split, len(shards[split])))
        self.index = replace(
            self.index,
            pieces=pieces,
            documents=documents,
            text_bytes=text_bytes,
            complete=complete,
            shards=shards,
        )
        content = {"format_version": FORMAT_VERSION, **asdict(self.index)}
        content.update(content.pop("shards"))
        _write_durably(self._directory / INDEX, json.dumps(content, indent=1).encode())
        self._pending = {split: [] for split in SPLITS}

    def _write(self, split: Split, number: int) -> Shard:
        data = np.concatenate(self._pending[split]).astype(_DTYPE, copy=False)
        name = f"{split}-{number:05d}.bin"
        _write_durably(self._directory / name, data.data)
        return Shard(name, len(data), hashlib.sha256(data.data).hexdigest())


class TokenShards:
    """The tokens of one split as one long array, memory-mapped."""

    def __init__(self, directory: Path, shards: tuple[Shard, ...]) -> None:
        """Raises Damaged if a file is missing, or its size or SHA-256 is not the recorded one."""
        self._paths = [directory / shard.name for shard in shards]
        self._ends = np.cumsum([shard.tokens for shard in shards], dtype=np.int64)
        self._maps: list[Tokens] = []
        for path, shard in zip(self._paths, shards, strict=True):
            _verify(path, shard)

    @property
    def n_tokens(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, length: int) -> Tokens:
        """A copy of tokens [start, start + length), over shard borders where need be.

        Raises IndexError outside [0, n_tokens].
        """
        if start < 0 or length < 0 or start + length > self.n_tokens:
            raise IndexError(f"tokens {start} to {start + length} of {self.n_tokens}")
        if not self._maps:
            self._maps = [np.memmap(path, dtype=_DTYPE, mode="r") for path in self._paths]
        result = np.empty(length, dtype=np.uint16)
        filled = 0
        number = int(np.searchsorted(self._ends, start, side="right"))
        while filled < length:
            shard = self._maps[number]
            offset = start + filled - (int(self._ends[number]) - len(shard))
            part = shard[offset : offset + length - filled]
            result[filled : filled + len(part)] = part
            filled += len(part)
            number += 1
        return result

    def __getstate__(self) -> dict[str, Any]:
        # A data loading process opens the files itself; maps would be copied to it whole.
        return {**self.__dict__, "_maps": []}


def _verify(path: Path, shard: Shard) -> None:
    advice = f"delete {path.parent} and start again: it is tokenized anew"
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != shard.tokens * _DTYPE.itemsize:
                raise Damaged(
                    f"{path} has {size} bytes, not {shard.tokens * _DTYPE.itemsize}: {advice}"
                )
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise Damaged(f"{path} is missing: {advice}") from error
    if digest != shard.sha256:
        raise Damaged(f"{path} was changed (SHA-256 differs): {advice}")


def _write_durably(path: Path, data: bytes | memoryview) -> None:
    """`path` holds all of `data` or what it held before, also after a power cut."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
