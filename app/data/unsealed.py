"""Keeps the tokens that were made but not sealed when the preparation ended.

    unsealed.tokens   SHA-256 (hex) of what follows, a line of JSON, the tokens of both splits

They save the next start some work, and the shards are the same without them. So a file that is
damaged, or that does not follow the seals that are there, is ignored. The file is in no index and
never in the bucket. Only the process that holds the preparation's lock reads or writes it.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from app.data.shards import (
    DTYPE,
    SPLITS,
    ShardIndex,
    Split,
    Tokens,
    encode_index,
    write_durably,
)
from app.data.tokenization_limits import TOKENIZATION_LIMITS, TokenizationLimits
from app.errors import Damaged

log = logging.getLogger(__name__)

FILE = "unsealed.tokens"

_STRICT = ConfigDict(extra="forbid", strict=True)


@checked_dataclass(frozen=True, config=_STRICT)
class Tally:
    """Where the tokenizer stands: counted from the beginning of the source.

    `position` is the source's own. `begun` counts the pieces and characters of the batch within
    which the source was left, so that it ends where it would have ended; (0, 0) between batches.
    """

    position: Mapping[str, Any] | None
    pieces: NonNegativeInt
    documents: NonNegativeInt
    text_bytes: NonNegativeInt
    begun: tuple[NonNegativeInt, NonNegativeInt] = (0, 0)


@dataclass(frozen=True)
class Unsealed:
    """Tokens that follow those of `index`, in parts, and how far the source was read for them."""

    index: ShardIndex
    tally: Tally
    tokens: Mapping[Split, Sequence[Tokens]]


class _Header(BaseModel):
    """The line of JSON. `index` is the SHA-256 of the one that the tokens follow."""

    model_config = _STRICT

    index: str
    tally: Tally
    tokens: dict[Split, NonNegativeInt]


def encode_unsealed(unsealed: Unsealed) -> bytes:
    """The content of the file."""
    parts = {
        split: np.concatenate([*unsealed.tokens[split], np.empty(0, DTYPE)], dtype=DTYPE)
        for split in SPLITS
    }
    header = _Header(
        index=_digest(encode_index(unsealed.index)).decode(),
        tally=unsealed.tally,
        tokens={split: len(part) for split, part in parts.items()},
    )
    lines = [header.model_dump_json().encode(), b"\n", *(part.tobytes() for part in parts.values())]
    content = b"".join(lines)
    return _digest(content) + b"\n" + content


def decode_unsealed(content: bytes, index: ShardIndex) -> Unsealed | None:
    """The tokens that follow `index`; None if its last seal already holds them. Raises Damaged for
    any other content."""
    digest, _, rest = content.partition(b"\n")
    if digest != _digest(rest):
        raise Damaged("it was changed (SHA-256 differs)")
    line, _, tokens = rest.partition(b"\n")
    try:
        header = _Header.model_validate_json(line)
    except ValidationError as error:
        raise Damaged("it is of another version") from error
    if header.index != _digest(encode_index(index)).decode():
        before = index.first(max(0, len(index.seals) - 1))
        if header.index == _digest(encode_index(before)).decode():
            return None
        raise Damaged("it follows other shards than those that are here")
    sizes = [header.tokens[split] for split in SPLITS]
    parts = np.split(np.frombuffer(tokens, DTYPE), np.cumsum(sizes)[:-1])
    found = {split: [part] for split, part in zip(SPLITS, parts, strict=True)}
    return Unsealed(index, header.tally, found)


class UnsealedTokens:
    """The file in `directory`. All but `note` and `read` may be called from any thread."""

    def __init__(self, directory: Path, limits: TokenizationLimits = TOKENIZATION_LIMITS) -> None:
        self._keep_seconds = limits.keep_seconds
        self._path = directory / FILE
        self._newest: Unsealed | None = None
        self._kept: Unsealed | None = None
        self._kept_at = time.monotonic()
        self._writing = threading.Lock()

    def read(self, index: ShardIndex) -> Unsealed | None:
        """What the file holds, if it follows `index`. Where it does not, the log says why."""
        try:
            found = decode_unsealed(self._path.read_bytes(), index)
        except FileNotFoundError:
            return None
        except (OSError, Damaged) as error:
            log.warning("%s is not used, its tokens are made again: %s", self._path, error)
            return None
        if found is None:  # killed between the seal and the removal of the file
            return None
        n_tokens = sum(len(part) for parts in found.tokens.values() for part in parts)
        log.info(
            "%s tokens of the last start are in no shard yet: it goes on there", f"{n_tokens:,}"
        )
        return found

    def note(self, unsealed: Unsealed) -> None:
        """Remember `unsealed` for `keep`, and write it now if the last writing is long ago."""
        self._newest = unsealed
        if time.monotonic() - self._kept_at >= self._keep_seconds:
            self.keep()

    def keep(self) -> None:
        """Write what was noted last. A failure is logged and not raised, since it would hide the
        error that ended the work; the tokens are lost then."""
        with self._writing:
            unsealed = self._newest
            if unsealed is None or unsealed is self._kept:
                return
            try:
                write_durably(self._path, encode_unsealed(unsealed))
            except OSError as error:
                log.warning("%s is not written, its tokens are lost: %s", self._path, error)
                with suppress(OSError):
                    self._path.with_name(FILE + ".partial").unlink()
            self._kept, self._kept_at = unsealed, time.monotonic()

    def clear(self) -> None:
        """Remove the file: its tokens are sealed now, or of no use."""
        with self._writing:
            self._newest = None
            self._kept_at = time.monotonic()
            with suppress(OSError):  # a file that stays follows other seals, and is ignored
                self._path.unlink()


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
