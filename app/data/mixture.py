"""Several sources read as one, each with its share of the characters.

The next document comes from the source that has given the fewest characters per weight so far,
and from the first of several that are equal. So the order follows from the texts and the
weights alone, and every stretch of a mixture has nearly the shares that were asked for.
Characters are Unicode code points.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from app.console import counted, redacted
from app.data.limits import DEFAULT_LIMITS, DataLimits
from app.data.pieces import Piece, Pieces, Position, Source
from app.errors import ConfigError
from app.settings.dataset_spec import WeightedPart

log = logging.getLogger(__name__)

# What a source tells of a file that is not empty: its size, and our SHA-256, or the MD5 that S3
# makes its ETag of. Other ETags and dates can be equal where the content is not.
_DIGEST = re.compile(r"""[1-9]\d* (blocks [0-9a-f]{64}|[0-9a-f]{64}|"?[0-9a-f]{32}(-\d+)?"?)""")


@dataclass(frozen=True)
class Mixture:
    """Sources with weights; the sum of the weights does not matter."""

    parts: tuple[WeightedPart, ...]
    sources: tuple[Source, ...]
    limits: DataLimits = DEFAULT_LIMITS

    @property
    def pinned(self) -> str:
        return ",".join(
            f"{source.pinned}:{part.weight}"
            for part, source in zip(self.parts, self.sources, strict=True)
        )

    @property
    def revision(self) -> str | None:
        """The hub's revisions in the order of the parts, if there are any."""
        return ",".join(filter(None, (source.revision for source in self.sources))) or None

    def origins(self) -> Mapping[str, str]:
        return {key: name for source in self.sources for key, name in source.origins().items()}

    def identity(self) -> Mapping[str, str]:
        """Raises ConfigError if all the files of one part are in another, by whatever names."""
        total = sum(float(part.weight) for part in self.parts)
        identity: dict[str, str] = {}
        known: list[_Content] = []
        for part, source in zip(self.parts, self.sources, strict=True):
            label = redacted(part.spec)
            content = source.identity()
            compared = _Content(
                label,
                {value: name for name, value in content.items() if _DIGEST.fullmatch(value)},
                sum(
                    name != "TEXT_COLUMN" and not value.startswith("0 ")
                    for name, value in content.items()
                ),
            )
            for other in known:
                _compare(other, compared)
            known.append(compared)
            identity[f"{label} (weight)"] = repr(float(part.weight) / total)
            identity.update({f"{label}: {name}": value for name, value in content.items()})
        return identity

    def pieces(self, after: Position | None) -> Pieces:
        return MixedPieces(self, after)


def mix(
    parts: Sequence[WeightedPart], sources: Sequence[Source], limits: DataLimits = DEFAULT_LIMITS
) -> Mixture:
    """Raises ConfigError if a file, object or dataset is in more than one part."""
    known: dict[str, str] = {}
    for part, source in zip(parts, sources, strict=True):
        for key, name in source.origins().items():
            if key in known:
                raise _twice(redacted(known[key]), redacted(part.spec), f" ({name})")
        known.update(dict.fromkeys(source.origins(), part.spec))
    return Mixture(tuple(parts), tuple(sources), limits)


@dataclass(frozen=True)
class _Content:
    """What is known of a part's files.

    `files` gives the name by the digest, for the files that have a digest. `n_files` counts all
    that are not empty.
    """

    label: str
    files: Mapping[str, str]
    n_files: int


def _compare(one: _Content, other: _Content) -> None:
    """Refuse two parts if one holds all the files of the other; log what else they share.

    Two folders that share a licence are no reason to refuse them.
    """
    shared = one.files.keys() & other.files.keys()
    if not shared:
        return
    example = min(other.files[content] for content in shared)
    if len(shared) == min(one.n_files, other.n_files):
        raise _twice(one.label, other.label, f" ({example})")
    log.warning(
        "DATASET: %s and %s have %s in common, such as %s: read twice",
        one.label,
        other.label,
        counted(len(shared), "file"),
        example,
    )


def _twice(one: str, other: str, what: str = "") -> ConfigError:
    return ConfigError(
        f"DATASET: {one} and {other} hold the same text{what}, which would be read twice: name it "
        "once, with the sum of the weights"
    )


@dataclass
class _Share:
    """How far one source is read, and how many characters it has given."""

    name: str
    weight: float
    pieces: Pieces
    characters: int
    ended: bool


class MixedPieces(Pieces):
    """Documents of several sources in turn.

    A document stays together up to `turn_characters`. A longer one, such as a large .txt file,
    gives way to the other sources there, and its rest counts as another document: else the
    first gigabyte of a mixture could be one book.
    """

    def __init__(self, mixture: Mixture, after: Position | None) -> None:
        after = after or {}
        before = after.get("sources", [{}] * len(mixture.parts))
        self._shares = [
            _Share(
                name=redacted(part.spec),
                weight=float(part.weight),
                pieces=source.pieces(reached.get("after")),
                characters=reached.get("characters", 0),
                ended=reached.get("ended", False),
            )
            for part, source, reached in zip(mixture.parts, mixture.sources, before, strict=True)
        ]
        self._most_characters = mixture.limits.turn_characters
        # The number of the source whose document is not at its end; None: all are.
        self._turn: int | None = after.get("turn")
        self._turn_characters: int = after.get("turn_characters", 0)

    def __next__(self) -> Piece:
        while True:
            begins = self._turn is None
            number = self._furthest_behind() if self._turn is None else self._turn
            share = self._shares[number]
            piece = next(share.pieces, None)
            if piece is None:
                share.ended, self._turn = True, None
                if not all(other.ended for other in self._shares):
                    log.info("DATASET: %s is read to its end, the others go on", share.name)
                continue
            share.characters += len(piece.text)
            self._turn_characters = len(piece.text) + (0 if begins else self._turn_characters)
            ends = piece.ends_document or self._turn_characters >= self._most_characters
            self._turn = None if ends else number
            if (begins, ends) == (piece.starts_document, piece.ends_document):
                return piece
            return replace(piece, starts_document=begins, ends_document=ends)

    def _furthest_behind(self) -> int:
        going_on = [number for number, share in enumerate(self._shares) if not share.ended]
        if not going_on:
            raise StopIteration
        return min(going_on, key=lambda n: self._shares[n].characters / self._shares[n].weight)

    @property
    def position(self) -> Position:
        sources = [
            {"after": share.pieces.position, "characters": share.characters, "ended": share.ended}
            for share in self._shares
        ]
        return {"sources": sources, "turn": self._turn, "turn_characters": self._turn_characters}

    def close(self) -> None:
        for share in self._shares:
            share.pieces.close()
