"""A source of text as a sequence of pieces, and the place in it after which to go on."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, AnyStr, Protocol

PIECE_SIZE = 4_096  # characters of a row, bytes of a .txt file
LONG_ROW = 1 << 20  # characters
MAX_ROW_BYTES = 64 * 2**20

Position = Mapping[str, Any]
"""Where to go on: a small value for JSON. Each kind of source has its own keys; {} is the start."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A document, or a part of a long one. Parts are joined without a separator."""

    text: str
    starts_document: bool = True
    ends_document: bool = True


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


def row_pieces(text: str, given: int = 0) -> Iterator[tuple[Piece, int | None]]:
    """The pieces of one row from number `given` on, each with its number; None marks the last.

    A row of up to LONG_ROW characters is one piece. A longer one is cut at line ends: a
    tokenizer given one string of many megabytes takes gigabytes of memory and a single core.
    """
    if len(text) <= LONG_ROW:
        if not given:
            yield Piece(text), None
        return
    start = number = 0
    while start < len(text):
        end = piece_end(text, "\n", start)
        if number >= given:
            last = end == len(text)
            yield Piece(text[start:end], start == 0, last), None if last else number
        start = end
        number += 1


def piece_end(text: AnyStr, line_end: AnyStr, start: int) -> int:
    """Where the piece that begins at `start` ends.

    After the first line end from PIECE_SIZE on; after twice as much where there is none.
    """
    end = text.find(line_end, start + PIECE_SIZE - 1, start + 2 * PIECE_SIZE)
    return end + 1 if end >= 0 else min(start + 2 * PIECE_SIZE, len(text))
