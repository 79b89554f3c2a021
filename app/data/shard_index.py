"""The index of the shards: which files of token ids there are, and what is in them.

    train-00000.bin  train-00001.bin …   raw little-endian uint16, nothing else
    validation-00000.bin …               the same, for the held-out text
    index.json                           a list of seals

A seal is one step of the preparation: at most one shard of each split, with its size and
SHA-256, and how far the source was read. A shard is written and synced as a whole before the index
names it, and the index is replaced in one step. A kill may cost tokens that were not sealed yet
(see `unsealed`), but the files that are made in the end are the same, byte for byte.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, ConfigDict, Field, NonNegativeInt
from pydantic.dataclasses import dataclass as checked_dataclass

from app.data.data_dir import write_durably
from app.errors import Damaged
from app.stores.documents import Document, decode_document

log = logging.getLogger(__name__)

INDEX = "index.json"
FORMAT_VERSION = 2

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")

DTYPE = np.dtype("<u2")
_STRICT = ConfigDict(extra="forbid", strict=True)
_Count = Annotated[int, Field(ge=0, lt=1 << 62)]
# What positions of all sources count, and what lies inside them. The library of the hub has its own
# state, which nobody else knows.
_COUNTED = ("file", "offset", "line", "part", "row", "rows", "document", "characters", "turn")


def _counts(position: dict[str, Any]) -> dict[str, Any]:
    for name, value in position.items():
        inner = value if name == "sources" else [value] if name == "after" else []
        counted = name in (*_COUNTED, "turn_characters") and (name, value) != ("turn", None)
        fits = type(value) is int and 0 <= value < 1 << 62 if counted else True
        places = isinstance(inner, list) and all(p is None or isinstance(p, dict) for p in inner)
        if not (fits and places):
            raise ValueError(f"{name} is no part of a position")
        for place in filter(None, inner):
            _counts(place)
    return position


_Position = Annotated[dict[str, Any], AfterValidator(_counts)]


@checked_dataclass(frozen=True, config=_STRICT)
class Shard:
    """A sealed file; `sha256` is hexadecimal."""

    tokens: Annotated[int, Field(ge=0, le=2**32)]  # so many that no sum of them overflows
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @property
    def n_bytes(self) -> int:
        return self.tokens * DTYPE.itemsize

    def matches(self, content: bytes) -> bool:
        return len(content) == self.n_bytes and hashlib.sha256(content).hexdigest() == self.sha256


@checked_dataclass(frozen=True, config=_STRICT)
class Tally:
    """How far the source is tokenized, counted from its beginning.

    `position` is the source's own. If the source failed within a batch, `begun` counts the pieces
    and characters of that batch so far, so that the batch ends where it would have ended without
    the failure; between batches it is (0, 0).
    """

    position: Mapping[str, Any] | None
    pieces: NonNegativeInt
    documents: NonNegativeInt
    text_bytes: NonNegativeInt = 0
    begun: tuple[NonNegativeInt, NonNegativeInt] = (0, 0)


@checked_dataclass(frozen=True, config=_STRICT)
class Seal:
    """What one step of the preparation added, and where the next step begins.

    `position` is where the source was left, in the source's own terms. Seals are compared without
    it, since the library of the hub has several positions for one place, depending on where its
    reading began. `pieces` and `documents` of the source and `text_bytes` (UTF-8, both splits) are
    counted from the beginning of the source, so that the first seals make an index of their own.
    """

    pieces: _Count
    documents: _Count
    text_bytes: _Count
    train: Shard | None = None
    validation: Shard | None = None
    position: _Position | None = field(default=None, compare=False)

    def shard(self, split: Split) -> Shard | None:
        return self.train if split == "train" else self.validation


@dataclass(frozen=True)
class NamedShard:
    """A shard, the name of its file, and the number of the seal that made it."""

    name: str
    seal: int
    shard: Shard


@dataclass(frozen=True)
class ShardIndex:
    """What index.json holds. Its shards are made of the first `pieces` of the source, no more.

    `source` and `tokenizer` are fingerprints. `complete`: the source has no more pieces.
    """

    source: str
    tokenizer: str
    seals: tuple[Seal, ...] = ()
    complete: bool = False

    @property
    def tally(self) -> Tally:
        """How far the source was read when the last seal was made."""
        last = self.seals[-1] if self.seals else Seal(0, 0, 0)
        return Tally(last.position, last.pieces, last.documents, last.text_bytes)

    @property
    def pieces(self) -> int:
        return self.tally.pieces

    @cached_property
    def shards(self) -> Mapping[Split, tuple[NamedShard, ...]]:
        found: dict[Split, list[NamedShard]] = {split: [] for split in SPLITS}
        for number, seal in enumerate(self.seals):
            for split, named in found.items():
                if (shard := seal.shard(split)) is not None:
                    named.append(NamedShard(f"{split}-{len(named):05d}.bin", number, shard))
        return {split: tuple(named) for split, named in found.items()}

    @cached_property
    def ends(self) -> Mapping[Split, npt.NDArray[np.int64]]:
        """For each shard of a split, the number of tokens up to its end."""
        return {
            split: np.cumsum([named.shard.tokens for named in shards], dtype=np.int64)
            for split, shards in self.shards.items()
        }

    def n_tokens(self, split: Split) -> int:
        ends = self.ends[split]
        return int(ends[-1]) if len(ends) else 0

    def shards_with(
        self, split: Split, starts: npt.NDArray[np.int64], length: int
    ) -> Iterator[NamedShard]:
        """Those with tokens [start, start + length) of each start; one may come twice."""
        ends, shards = self.ends[split], self.shards[split]
        first = np.searchsorted(ends, starts, side="right")
        last = np.searchsorted(ends, starts + (length - 1), side="right")
        for low, high in set(zip(first.tolist(), last.tolist(), strict=True)):
            yield from shards[low : high + 1]

    def first(self, n_seals: int) -> "ShardIndex":
        """The index as it was after its first `n_seals` seals; the same index if it has no more."""
        if n_seals >= len(self.seals):
            return self
        return replace(self, seals=self.seals[:n_seals], complete=False)

    def continues(self, other: "ShardIndex") -> bool:
        """Whether this index holds all of `other`, and more."""
        longer = (len(self.seals), self.complete) > (len(other.seals), other.complete)
        return longer and self.seals[: len(other.seals)] == other.seals


class _IndexFile(Document):
    """index.json as it is written. People read `documents` and `text_bytes`; no program does."""

    format_version: int
    source: str
    tokenizer: str
    complete: bool
    documents: int = 0
    text_bytes: int = 0
    seals: tuple[Seal, ...]


def encode_index(index: ShardIndex) -> bytes:
    """The content of index.json."""
    file = _IndexFile(
        format_version=FORMAT_VERSION,
        source=index.source,
        tokenizer=index.tokenizer,
        complete=index.complete,
        documents=index.tally.documents,
        text_bytes=index.tally.text_bytes,
        seals=index.seals,
    )
    return file.model_dump_json(exclude_none=True).encode()


def decode_index(content: bytes, source: str, tokenizer: str, place: str) -> ShardIndex:
    """The index in `content`, which was read from `place`.

    Raises Damaged if it cannot be read or is of another source or tokenizer, IncompatibleRun if a
    newer version wrote it.
    """
    file = decode_document(
        content,
        _IndexFile,
        place,
        newest_format=FORMAT_VERSION,
        damaged=lambda _: f"{place} is not readable",
    )
    if (file.format_version, file.source, file.tokenizer) != (FORMAT_VERSION, source, tokenizer):
        raise Damaged(f"{place} is of another dataset or version")
    return ShardIndex(source, tokenizer, file.seals, file.complete)


def read_index(directory: Path, source: str, tokenizer: str) -> ShardIndex:
    """The index in `directory`; an empty one if there is none. Raises what `decode_index` does."""
    path = directory / INDEX
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return ShardIndex(source=source, tokenizer=tokenizer)
    try:
        return decode_index(content, source, tokenizer, str(path))
    except Damaged as error:
        raise Damaged(
            f"{error}: the next `train` or `prepare` sets it aside and makes it again"
        ) from error


def mended_index(directory: Path, known: ShardIndex) -> ShardIndex:
    """The index in `directory`. If it is damaged, it is set aside, and `known` takes its place.

    Only the process that holds the lock of `directory` may call this. Raises IncompatibleRun and
    OSError.
    """
    try:
        return read_index(directory, known.source, known.tokenizer)
    except Damaged:
        path, aside = directory / INDEX, directory / f"{INDEX}.damaged"
        path.replace(aside)
        log.error("DAMAGED INDEX %s moved to %s: what it named is found or made again", path, aside)
        write_index(directory, known)
        return known


def write_index(directory: Path, index: ShardIndex) -> None:
    """Replace the index in one step. Raises OSError."""
    write_durably(directory / INDEX, encode_index(index))
