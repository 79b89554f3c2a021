"""Makes shards: what is appended becomes durable seal by seal."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from app.data.shard_index import (
    DTYPE,
    SPLITS,
    Seal,
    Shard,
    ShardIndex,
    Split,
    Tokens,
    write_durably,
    write_index,
)


class ShardWriter:
    """Adds tokens to a directory, from where its index ends."""

    def __init__(self, directory: Path, index: ShardIndex) -> None:
        self._directory = directory
        self.index = index
        self._pending: dict[Split, list[Tokens]] = {split: [] for split in SPLITS}
        self._n_pending: dict[Split, int] = dict.fromkeys(SPLITS, 0)

    def append(self, split: Split, tokens: Tokens) -> None:
        self._pending[split].append(tokens)
        self._n_pending[split] += len(tokens)

    def move(self, source: Split, target: Split) -> None:
        """What was appended to one split since the last seal is the other's."""
        for tokens in self._pending[source]:
            self.append(target, tokens)
        self._pending[source], self._n_pending[source] = [], 0

    def pending(self) -> dict[Split, tuple[Tokens, ...]]:
        """What was appended since the last seal, as it is now."""
        return {split: tuple(parts) for split, parts in self._pending.items()}

    def n_pending(self, split: Split) -> int:
        return self._n_pending[split]

    def n_tokens(self, split: Split) -> int:
        """Sealed and pending."""
        return self.index.n_tokens(split) + self.n_pending(split)

    def seal(
        self,
        *,
        position: Mapping[str, Any] | None,
        pieces: int,
        documents: int,
        text_bytes: int = 0,
        complete: bool = False,
    ) -> None:
        """Make what was appended durable; it comes from the source's first `pieces` pieces, up
        to its `position`.

        Raises OSError.
        """
        seal, files = self._pack(position, pieces, documents, text_bytes)
        self._write(files)
        self._add(seal, complete)
        write_index(self._directory, self.index)

    def restore(
        self,
        expected: Seal,
        *,
        position: Mapping[str, Any] | None,
        pieces: int,
        documents: int,
        text_bytes: int = 0,
    ) -> bool:
        """Write the files of a seal again, if what was appended makes the `expected` one:
        whether it does. Raises OSError."""
        seal, files = self._pack(position, pieces, documents, text_bytes)
        if seal != expected:
            return False
        self._write(files)
        return True

    def _add(self, seal: Seal, complete: bool) -> None:
        self.index = replace(self.index, seals=(*self.index.seals, seal), complete=complete)
        self._pending = {split: [] for split in SPLITS}
        self._n_pending = dict.fromkeys(SPLITS, 0)

    def _pack(
        self, position: Mapping[str, Any] | None, pieces: int, documents: int, text_bytes: int
    ) -> tuple[Seal, dict[Split, Tokens]]:
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
        place = None if position is None else dict(position)
        return Seal(pieces, documents, text_bytes, train, validation, place), files

    def _write(self, files: Mapping[Split, Tokens]) -> None:
        for split, data in files.items():
            name = f"{split}-{len(self.index.shards[split]):05d}.bin"
            write_durably(self._directory / name, data.data)
