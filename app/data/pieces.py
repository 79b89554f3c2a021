"""A source of text as a sequence of pieces, and the place in it after which to go on.

One text in 100 is held out for validation, chosen by its hash. Where a document is at hand it
is decided about as a whole, in whatever file it comes.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, AnyStr, Protocol

PIECE_SIZE = 4_096  # characters of a row, bytes of a .txt file
LONG_ROW = 1 << 20  # characters
DOCUMENT_BYTES = 64 * 2**10  # a .txt file of up to so many is a document, a longer one a stream
MAX_ROW_BYTES = 64 * 2**20
HELD_OUT_ONE_IN = 100

_HASHED_CHARACTERS = 1 << 20  # at once: a long row is not encoded as a whole

Position = Mapping[str, Any]
"""Where to go on: a small value for JSON. Each kind of source has its own keys; {} is the start."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A document, or a part of a long one. Parts are joined without a separator.

    `held_out` is what was decided for the whole document; None: the piece decides for itself.
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
        """After the last piece that was returned."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files and downloads; what is not closed does so when it is forgotten."""


class PlacedPieces(Pieces):
    """The pieces of a generator that says the position after each of them."""

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
        """The hub's revision, where there is one."""
        ...

    def origins(self) -> Mapping[str, str]:
        """Each file, object or dataset by what makes it the same one, with its name for people."""
        ...

    def identity(self) -> Mapping[str, str]:
        """All that decides about the text: name of a part → what changes when its content does."""
        ...

    def pieces(self, after: Position | None) -> Pieces: ...


def held_out(text: str) -> bool:
    """Whether `text` is for validation: one in 100, by its SHA-256."""
    digest = hashlib.sha256()
    for start in range(0, len(text), _HASHED_CHARACTERS):
        digest.update(text[start : start + _HASHED_CHARACTERS].encode())
    return int.from_bytes(digest.digest()[:8], "little") % HELD_OUT_ONE_IN == 0


def row_pieces(text: str, given: int = 0) -> Iterator[tuple[Piece, int | None]]:
    """The pieces of one row from number `given` on, each with its number; None marks the last.

    A row of up to LONG_ROW characters is one piece. A longer one is cut at line ends: a
    tokenizer given one string of many megabytes takes gigabytes of memory and a single core.
    """
    if len(text) <= LONG_ROW:
        if not given:
            yield Piece(text), None
        return
    held, start, number = held_out(text), 0, 0
    while start < len(text):
        end = piece_end(text, "\n", start)
        if number >= given:
            last = end == len(text)
            yield Piece(text[start:end], start == 0, last, held), None if last else number
        start = end
        number += 1


def piece_end(text: AnyStr, line_end: AnyStr, start: int) -> int:
    """Where the piece that begins at `start` ends.

    After the first line end from PIECE_SIZE on; after twice as much where there is none.
    """
    end = text.find(line_end, start + PIECE_SIZE - 1, start + 2 * PIECE_SIZE)
    return end + 1 if end >= 0 else min(start + 2 * PIECE_SIZE, len(text))
