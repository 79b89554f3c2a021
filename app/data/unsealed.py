"""Tokens that are in no shard yet, kept in a file so that a restart need not make them again.

    unsealed.tokens   SHA-256 (hex) of what follows, a line of JSON, the tokens of both splits

The file only saves work: the shards are the same, byte for byte, without it. So it is ignored if it
is damaged or does not follow the seals that are there. No index names it, and it is never uploaded.
Only the process that holds the preparation's lock reads or writes it.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import NonNegativeInt, ValidationError

from app.data.data_dir import write_durably
from app.data.limits import DEFAULT_LIMITS, DataLimits
from app.data.shard_index import DTYPE, SPLITS, ShardIndex, Split, Tally, encode_index
from app.data.shards import Tokens
from app.errors import Damaged
from app.stores.documents import Part

log = logging.getLogger(__name__)

FILE = "unsealed.tokens"


@dataclass(frozen=True)
class Unsealed:
    """Tokens that follow those of `index`, in parts, and how far the source is tokenized then."""

    index: ShardIndex
    tally: Tally
    tokens: Mapping[Split, Sequence[Tokens]]


class _Header(Part):
    """The line of JSON. `index` is the SHA-256 of the index that the tokens follow."""

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
    """The tokens in `content`, which follow `index`; None if its last seal holds them already.

    Raises Damaged for any other content.
    """
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
    """The file in `directory`. `keep` and `clear` may be called from any thread."""

    def __init__(self, directory: Path, limits: DataLimits = DEFAULT_LIMITS) -> None:
        self._keep_seconds = limits.keep_seconds
        self._path = directory / FILE
        self._newest: Unsealed | None = None
        self._kept: Unsealed | None = None
        self._kept_at = time.monotonic()
        self._writing = threading.Lock()

    def read(self, index: ShardIndex) -> Unsealed | None:
        """The tokens in the file, if they follow `index`. If not, a line in the log says why."""
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
        """Remember what `keep` is to write; write it if the last writing was long ago."""
        self._newest = unsealed
        if time.monotonic() - self._kept_at >= self._keep_seconds:
            self.keep()

    def keep(self) -> None:
        """Write what was noted last.

        A failure is only logged, and costs those tokens: the error that ended the work must not
        be hidden by one of the disk.
        """
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
        """Forget the tokens and remove the file: they are sealed now, or of no use."""
        with self._writing:
            self._newest = None
            self._kept_at = time.monotonic()
            with suppress(OSError):  # a file that stays follows other seals, so it is ignored
                self._path.unlink()


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
