"""Text to tokens: which text goes into which split, and where a shard ends.

What `pieces` holds out for validation is held out whether or not the run validates: so the
training data depend on nothing but the source and the tokenizer. Where all the text would be
held out, as that of a dataset of one text can be, all of it is trained on.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from app.errors import ConfigError, Damaged
from app.pieces import MAX_ROW_BYTES, held_out
from app.sections import MAX_VALIDATION_TOKENS
from app.shard_writer import ShardWriter
from app.shards import SHARD_TOKENS, ShardIndex, Split, Tokens
from app.sources import Piece, Pieces, PinnedSource, Position
from app.tokenizer import TextEncoder, TokenizerFiles

_Text = TypeVar("_Text")

_BATCH_CHARACTERS = 1 << 21  # enough for all cores, a second or two of work
_BATCH_PIECES = 1 << 16  # of less than 32 characters each; empty rows too take memory
_IN_FLIGHT = 2  # batches: while one is encoded, another becomes arrays and a third is read
_VERSION = 4  # of the way that pieces become shards


@dataclass(frozen=True)
class Tally:
    """Where the tokenizer stands: counted from the beginning of the source.

    `position` is the source's own.
    """

    position: Position | None
    pieces: int
    documents: int
    text_bytes: int


def tokens_fingerprint(source: str, tokenizer: TokenizerFiles) -> str:
    """SHA-256 (hex) of what decides about every byte of the shards."""
    identity = f"{_VERSION} {source} {tokenizer.fingerprint} {tokenizer.eos_token_id}"
    return hashlib.sha256(identity.encode()).hexdigest()


class CorpusTokenizer:
    """Makes the shards of DATASET in `directory`. One process at a time may do that."""

    def __init__(
        self,
        source: PinnedSource,
        tokenizer: TokenizerFiles,
        directory: Path,
        shard_tokens: int = SHARD_TOKENS,
    ) -> None:
        self._source, self._tokenizer, self._directory = source, tokenizer, directory
        self._dataset, self._shard_tokens = source.settings.dataset, shard_tokens

    def extend(self, index: ShardIndex, done: Callable[[Tally, int], None]) -> Iterator[ShardIndex]:
        """Go on after `index`: the new one after each seal, to the end of the source.

        `done` is called after each batch, with the training tokens sealed and pending.
        Raises what `PinnedSource.pieces` raises, ConfigError for a dataset without text, OSError.
        """
        writer = ShardWriter(self._directory, index)
        for tally, complete in self._fill(writer, done):
            if complete and not writer.n_tokens("train"):
                raise ConfigError(
                    f"DATASET={self._dataset} has no text to train on: name another dataset"
                )
            writer.seal(
                position=tally.position,
                pieces=tally.pieces,
                documents=tally.documents,
                text_bytes=tally.text_bytes,
                complete=complete,
            )
            yield writer.index

    def restore(self, index: ShardIndex, number: int, done: Callable[[Tally, int], None]) -> None:
        """Make the files of seal `number` again. Raises as `extend`, and Damaged."""
        writer = ShardWriter(self._directory, index.first(number))
        tally, _ = next(self._fill(writer, done))
        restored = writer.restore(
            index.seals[number],
            position=tally.position,
            pieces=tally.pieces,
            documents=tally.documents,
            text_bytes=tally.text_bytes,
        )
        if not restored:
            raise Damaged(
                f"DATASET={self._dataset} does not give the tokens that it gave before: "
                f"delete {self._directory} and start again"
            )

    def _fill(
        self, writer: ShardWriter, done: Callable[[Tally, int], None]
    ) -> Iterator[tuple[Tally, bool]]:
        """Append pieces, and stop where a shard ends: (how far, whether at the end of all).

        Shards end only where the text itself decides: after the batch that fills one. So
        their bytes depend neither on kills nor on how much was needed.
        """
        index = writer.index
        tally = Tally(index.position, index.pieces, index.documents, index.text_bytes)
        source = self._source.pieces(index.position)
        try:
            for batch in _encoded(_batches(source), TextEncoder(self._tokenizer)):
                tally = self._append(writer, batch, tally)
                done(tally, writer.n_tokens("train"))
                if writer.n_pending("train") >= self._shard_tokens:
                    yield tally, False
        finally:
            source.close()
        if not writer.n_tokens("train"):  # nothing is sealed then, and all the text held out
            writer.move("validation", "train")
        yield tally, True

    def _append(self, writer: ShardWriter, batch: "_Batch[_Encoded]", tally: Tally) -> Tally:
        end = np.array([self._tokenizer.eos_token_id], dtype=np.uint16)
        finished, text_bytes = tally.documents, tally.text_bytes
        for text in batch.texts:
            finished += text.ends_document
            if not text.n_bytes:
                continue
            trains = writer.n_tokens("train") > 0
            # The text before the gap and the text after it do not belong together.
            if trains and text.held_out and text.alone and not text.starts_document:
                writer.append("train", end)
            # Until there is text to train on, a held-out row may be all there is.
            room = MAX_VALIDATION_TOKENS if trains else MAX_ROW_BYTES
            if text.held_out and writer.n_tokens("validation") > room:
                continue
            split: Split = "validation" if text.held_out else "train"
            writer.append(split, text.tokens)
            if text.ends_document or (text.held_out and text.alone):
                writer.append(split, end)
            text_bytes += text.n_bytes
        return Tally(batch.position, tally.pieces + len(batch.texts), finished, text_bytes)


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A piece as tokens. `n_bytes` is the size of its text in UTF-8.

    `alone`: it is held out or not whatever the rest of its document is.
    """

    tokens: Tokens
    n_bytes: int
    held_out: bool
    alone: bool
    starts_document: bool
    ends_document: bool


@dataclass(frozen=True)
class _Batch(Generic[_Text]):
    """Texts that follow each other, and the source's position after the last of them."""

    texts: Sequence[_Text]
    position: Position


def _encoded(batches: Iterator[_Batch[Piece]], encoder: TextEncoder) -> Iterator[_Batch[_Encoded]]:
    """The batches in order, encoded on other threads while the next ones are read here."""

    def encode(batch: _Batch[Piece]) -> _Batch[_Encoded]:
        tokens = encoder.encode_batch(
            [piece.text for piece in batch.texts],
            [not piece.starts_document for piece in batch.texts],
        )
        texts = [_as_encoded(piece, ids) for piece, ids in zip(batch.texts, tokens, strict=True)]
        return _Batch(texts, batch.position)

    pool = ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="tokenizer")
    waiting: deque[Future[_Batch[_Encoded]]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(encode, batch))
            if len(waiting) > _IN_FLIGHT:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _as_encoded(piece: Piece, tokens: Tokens) -> _Encoded:
    return _Encoded(
        tokens=tokens,
        n_bytes=len(piece.text.encode()),
        held_out=held_out(piece.text) if piece.held_out is None else piece.held_out,
        alone=piece.held_out is None,
        starts_document=piece.starts_document,
        ends_document=piece.ends_document,
    )


def _batches(source: Pieces) -> Iterator[_Batch[Piece]]:
    batch: list[Piece] = []
    characters = 0
    for piece in source:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_PIECES:
            yield _Batch(batch, source.position)
            batch, characters = [], 0
    if batch:
        yield _Batch(batch, source.position)
