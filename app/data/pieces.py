"""What a source of text gives: pieces in a fixed order, and with each the position after it.

One text in 100 is held out for validation, chosen by its hash. Where the whole document is at
hand, the hash of the document decides for all of its pieces, whatever file it comes from.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from app.data.limits import DataLimits

HELD_OUT_ONE_IN = 100

Position = Mapping[str, Any]
"""Where to go on: a small value for JSON. Each kind of source has its own keys; {} is the start."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A document, or a part of a long one. Parts are joined without a separator.

    `held_out` says what was decided for the whole document. None: this piece's own hash decides.
    """

    text: str
    starts_document: bool = True
    ends_document: bool = True
    held_out: bool | None = None


Placed = tuple[Piece, Position]
"""A piece, and the position after it."""


class Pieces(ABC, Iterator[Piece]):
    """The pieces of a source, in an order that never changes.

    Going on from a `position` gives exactly the pieces that follow.
    """

    @property
    @abstractmethod
    def position(self) -> Position:
        """The position after the last piece that was returned."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files and downloads; pieces that nobody closes do so when they are freed."""


class PlacedPieces(Pieces):
    """The pieces of a generator that gives the position after each of them."""

    def __init__(self, placed: Generator[Placed], after: Position | None) -> None:
        self._placed, self._position = placed, after or {}

    def __next__(self) -> Piece:
        piece, self._position = next(self._placed)
        return piece

    @property
    def position(self) -> Position:
        return self._position

    def close(self) -> None:
        self._placed.close()


class Source(Protocol):
    """One source of text, found and listed, but not read yet."""

    @property
    def pinned(self) -> str:
        """DATASET with its content decided: a hub dataset with its revision."""
        ...

    @property
    def revision(self) -> str | None:
        """The hub's revision; None for a source that is not on the hub."""
        ...

    def origins(self) -> Mapping[str, str]:
        """Name each file, object or dataset for people, by a key that is the same for the same one.

        Two sources that share a key would read the same text twice.
        """
        ...

    def identity(self) -> Mapping[str, str]:
        """Describe all that decides about the text: name of a part → what changes with it."""
        ...

    def pieces(self, after: Position | None) -> Pieces:
        """Read the pieces that follow the position `after`; None reads from the start."""
        ...


def held_out(text: str, at_once: int = DataLimits.hashed_characters) -> bool:
    """Whether `text` is for validation: one in 100, by its SHA-256.

    `at_once` is the number of characters that are encoded at a time; the answer is the same.
    """
    digest = hashlib.sha256()
    for start in range(0, len(text), at_once):
        digest.update(text[start : start + at_once].encode())
    return int.from_bytes(digest.digest()[:8], "little") % HELD_OUT_ONE_IN == 0
