"""Text to tokens: which text goes into which split, and where a shard ends.

What `pieces` holds out for validation is held out whether or not the run validates: so the
training data depend on nothing but the source and the tokenizer. Where all the text would be
held out, as that of a dataset of one text can be, all of it is trained on.
"""

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from app.data.pieces import MAX_ROW_BYTES, held_out
from app.data.shard_writer import ShardWriter
from app.data.shards import SHARD_TOKENS, ShardIndex, Split, Tokens
from app.data.sources import Piece, Pieces, PinnedSource, Position
from app.data.tokenizer import TextEncoder, TokenizerFiles
from app.data.unsealed import Tally, Unsealed, UnsealedTokens
from app.errors import AccessDenied, ConfigError, Damaged, Unavailable
from app.settings.variables import MAX_VALIDATION_TOKENS

_Text = TypeVar("_Text")

_BATCH_CHARACTERS = 1 << 21  # enough for all cores, a second or two of work
_BATCH_PIECES = 1 << 16  # of less than 32 characters each; empty rows too take memory
_IN_FLIGHT = 2  # batches: while one is encoded, another becomes arrays and a third is read
_AWAY = (Unavailable, AccessDenied)  # what a source gave before is its text
_VERSION = 4  # of the way that pieces become shards
_CLOSE_SECONDS = 1.0  # for a file of some megabytes; what is left of a grace period is short


def tokens_fingerprint(source: str, tokenizer: TokenizerFiles) -> str:
    """SHA-256 (hex) of what decides about every byte of the shards."""
    identity = f"{_VERSION} {source} {tokenizer.fingerprint} {tokenizer.eos_token_id}"
    return hashlib.sha256(identity.encode()).hexdigest()


class ShardMaker:
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
        self._unsealed = UnsealedTokens(directory)

    def extend(
        self, index: ShardIndex, done: Callable[[int, int, int], None]
    ) -> Iterator[ShardIndex]:
        """Go on after `index`: the new one after each seal, to the end of the source.

        `done` is called after each batch, with the documents and the training tokens so far,
        and how many of these were made now. What is not sealed when the work ends is kept for
        the next call.
        Raises what `PinnedSource.pieces` raises, ConfigError for a dataset without text, OSError.
        """
        writer = ShardWriter(self._directory, index)
        begin = self._take_up(writer)
        before = writer.n_tokens("train")

        def appended(tally: Tally) -> None:
            self._unsealed.note(Unsealed(writer.index, tally, writer.pending()))
            n_tokens = writer.n_tokens("train")
            done(tally.documents, n_tokens, n_tokens - before)

        try:
            for tally, complete in self._fill(writer, begin, appended):
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
                self._unsealed.clear()
                yield writer.index
        except ConfigError:  # such as a file that was changed: its text may not be the source's
            self._unsealed.clear()
            raise
        finally:
            self._unsealed.keep()

    def close(self) -> None:
        """Keep what `extend`, which goes on in another thread, has pending now.

        A disk that hangs is not waited for: the work ends with the process.
        """
        keeping = threading.Thread(target=self._unsealed.keep, name="unsealed", daemon=True)
        keeping.start()
        keeping.join(_CLOSE_SECONDS)

    def restore(self, index: ShardIndex, number: int, goes_on: Callable[[], None]) -> None:
        """Make the files of seal `number` again; `goes_on` is called after each batch.

        Raises as `extend`, and Damaged.
        """
        writer = ShardWriter(self._directory, index.first(number))
        tally, _ = next(self._fill(writer, _end_of(writer.index), lambda _: goes_on()))
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

    def _take_up(self, writer: ShardWriter) -> Tally:
        """Append what was kept, if anything was: how far the source is read."""
        kept = self._unsealed.read(writer.index)
        if kept is None:
            return _end_of(writer.index)
        for split, parts in kept.tokens.items():
            for tokens in parts:
                writer.append(split, tokens)
        return kept.tally

    def _fill(
        self, writer: ShardWriter, tally: Tally, appended: Callable[[Tally], None]
    ) -> Iterator[tuple[Tally, bool]]:
        """Append pieces, and stop where a shard ends: (how far, whether at the end of all).

        Shards end only where the text itself decides: after the batch that fills one. So
        their bytes depend neither on kills nor on how much was needed.
        """

        def ends_shard(tally: Tally) -> bool:
            return tally.begun == (0, 0) and writer.n_pending("train") >= self._shard_tokens

        source = self._source.pieces(tally.position)
        try:
            if ends_shard(tally):  # it was kept since it could not be sealed
                yield tally, False
            batches = _batches(source, tally.begun)
            for batch in _encoded(batches, TextEncoder(self._tokenizer)):
                tally = self._append(writer, batch, tally)
                appended(tally)
                if ends_shard(tally):
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
        pieces = tally.pieces + len(batch.texts)
        return Tally(batch.position, pieces, finished, text_bytes, batch.begun)


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
    """Texts that follow each other, and the source's position after the last of them.

    `begun` is (0, 0), unless the source failed within the batch: see `Tally`.
    """

    texts: Sequence[_Text]
    position: Position
    begun: tuple[int, int] = (0, 0)


def _encoded(batches: Iterator[_Batch[Piece]], encoder: TextEncoder) -> Iterator[_Batch[_Encoded]]:
    """The batches in order, encoded on other threads while the next ones are read here.

    Where the source goes away, those that were read come first. One that was changed may have
    given them too: they are dropped.
    """

    def encode(batch: _Batch[Piece]) -> _Batch[_Encoded]:
        tokens = encoder.encode_batch(
            [piece.text for piece in batch.texts],
            [not piece.starts_document for piece in batch.texts],
        )
        texts = [_as_encoded(piece, ids) for piece, ids in zip(batch.texts, tokens, strict=True)]
        return _Batch(texts, batch.position, batch.begun)

    pool = ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="tokenizer")
    waiting: deque[Future[_Batch[_Encoded]]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(encode, batch))
            if len(waiting) > _IN_FLIGHT:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except _AWAY:
        while waiting:
            yield waiting.popleft().result()
        raise
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


def _batches(source: Pieces, begun: tuple[int, int] = (0, 0)) -> Iterator[_Batch[Piece]]:
    """The pieces in batches, of which the first one was `begun`: see `Tally`."""
    batch: list[Piece] = []
    pieces, characters = begun
    try:
        for piece in source:
            batch.append(piece)
            pieces, characters = pieces + 1, characters + len(piece.text)
            if characters >= _BATCH_CHARACTERS or pieces >= _BATCH_PIECES:
                yield _Batch(batch, source.position)
                batch, pieces, characters = [], 0, 0
    except _AWAY:
        if batch:
            yield _Batch(batch, source.position, (pieces, characters))
        raise
    if pieces:
        yield _Batch(batch, source.position)


def _end_of(index: ShardIndex) -> Tally:
    return Tally(index.position, index.pieces, index.documents, index.text_bytes)
