"""Text to tokens: which text goes into which split, and where a shard ends.

Some text is held out for validation, and `pieces` decides which. It is held out whether or not
the run validates, so the training data depend on nothing but the source and the tokenizer. Where
all the text would be held out, which can happen to a dataset of one text, all of it is trained on.
"""

import hashlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from app.data.limits import DEFAULT_LIMITS, DataLimits
from app.data.pieces import Piece, Pieces, Position, held_out
from app.data.shard_index import ShardIndex, Split, Tally
from app.data.shards import SHARD_TOKENS, ShardWriter, Tokens
from app.data.sources import PinnedSource
from app.data.tokenizer import TextEncoder, TokenizerFiles
from app.data.unsealed import Unsealed, UnsealedTokens
from app.errors import AccessDenied, ConfigError, Damaged, Unavailable

log = logging.getLogger(__name__)

_Text = TypeVar("_Text")
_Given = TypeVar("_Given")
_Result = TypeVar("_Result")

_AWAY = (Unavailable, AccessDenied)  # the text that the source gave before them can be used
_VERSION = 5  # of the way in which pieces become shards


def tokens_fingerprint(source: str, tokenizer: TokenizerFiles) -> str:
    """SHA-256 (hexadecimal) of all that the bytes of the shards depend on."""
    identity = f"{_VERSION} {source} {tokenizer.fingerprint} {tokenizer.eos_token_id}"
    return hashlib.sha256(identity.encode()).hexdigest()


class ShardMaker:
    """Makes the shards of DATASET in `directory`. Only one process at a time may do so."""

    def __init__(
        self,
        source: PinnedSource,
        tokenizer: TokenizerFiles,
        directory: Path,
        shard_tokens: int = SHARD_TOKENS,
        limits: DataLimits = DEFAULT_LIMITS,
        is_held_out: Callable[[str], bool] = held_out,
    ) -> None:
        self._source, self._tokenizer, self._directory = source, tokenizer, directory
        self._dataset, self._shard_tokens = source.settings.dataset, shard_tokens
        self._limits, self._is_held_out = limits, is_held_out
        self._unsealed = UnsealedTokens(directory, limits)

    def extend(
        self, index: ShardIndex, done: Callable[[int, int, int], None]
    ) -> Iterator[ShardIndex]:
        """Make the shards that follow those of `index`, to the end of the source.

        Yields the new index after each seal. `done` is called after each batch, with the number
        of documents so far, of training tokens so far, and of the training tokens that this call
        has made. Tokens that are not sealed when the work ends are kept for the next call.
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
                writer.seal(tally, complete=complete)
                self._unsealed.clear()
                yield writer.index
        except ConfigError:  # a file was changed, for example: what was read may be of another text
            self._unsealed.clear()
            raise
        finally:
            self._unsealed.keep()

    def close(self) -> None:
        """Write what `extend`, which may go on in another thread, has not sealed yet.

        A disk that hangs is waited for no longer than `close_seconds`, since the process ends.
        """
        keeping = threading.Thread(target=self._unsealed.keep, name="unsealed", daemon=True)
        keeping.start()
        keeping.join(self._limits.close_seconds)

    def restore(self, index: ShardIndex, number: int, goes_on: Callable[[], None]) -> None:
        """Make the shards of seal `number` again; `goes_on` is called after each batch.

        Raises what `extend` raises, and Damaged where the source gives other tokens now.
        """
        writer = ShardWriter(self._directory, index.first(number))
        tally, _ = next(self._fill(writer, writer.index.tally, lambda _: goes_on()))
        if not writer.restore(index.seals[number], tally):
            raise Damaged(
                f"DATASET={self._dataset} does not give the tokens that it gave before: "
                f"delete {self._directory} and start again"
            )

    def _take_up(self, writer: ShardWriter) -> Tally:
        """Append the tokens that an earlier call kept, if it did. Returns how far the source
        was read for all that `writer` has then."""
        kept = self._unsealed.read(writer.index)
        if kept is None:
            return writer.index.tally
        for split, parts in kept.tokens.items():
            for tokens in parts:
                writer.append(split, tokens)
        return kept.tally

    def _fill(
        self, writer: ShardWriter, tally: Tally, appended: Callable[[Tally], None]
    ) -> Iterator[tuple[Tally, bool]]:
        """Append the tokens of the source. Yields where a shard ends: how far the source was read,
        and whether that is its end.

        A shard ends after the batch that fills it, and the text alone decides where a batch ends.
        So the bytes of the shards depend neither on kills nor on how many tokens were needed.
        """

        def ends_shard(tally: Tally) -> bool:
            enough = self._shard_tokens
            if not writer.index.seals:
                enough = min(enough, self._limits.first_shard_tokens)
            return tally.begun == (0, 0) and writer.n_pending("train") >= enough

        source = self._source.pieces(tally.position)
        try:
            if ends_shard(tally):  # an earlier call kept a whole shard that it could not seal
                yield tally, False
            for batch in self._encoded(batches(source, self._limits, tally.begun)):
                tally = self._append(writer, batch, tally)
                appended(tally)
                if ends_shard(tally):
                    yield tally, False
        finally:
            source.close()
        if not writer.n_tokens("train"):  # then all the text is held out, and nothing is sealed
            writer.move("validation", "train")
        yield tally, True

    def _encoded(self, source: Iterator["Batch[Piece]"]) -> Iterator["Batch[EncodedPiece]"]:
        """The batches as tokens; as many are encoded at once as the limits allow."""
        encoder = TextEncoder(self._tokenizer)
        source = self._noticing(source, encoder.token(self._tokenizer.eos_token_id))

        def encode(batch: Batch[Piece]) -> Batch[EncodedPiece]:
            tokens = encoder.encode_batch(
                [piece.text for piece in batch.texts],
                [not piece.starts_document for piece in batch.texts],
            )
            texts = [self._as_encoded(*pair) for pair in zip(batch.texts, tokens, strict=True)]
            return Batch(texts, batch.position, batch.begun)

        return in_order(encode, source, self._limits.batches_in_flight)

    def _noticing(
        self, source: Iterator["Batch[Piece]"], end_of_text: str
    ) -> Iterator["Batch[Piece]"]:
        """The batches. The first one that spells the token `end_of_text` is said in a line."""
        said = not end_of_text
        for batch in source:
            if not said and any(end_of_text in piece.text for piece in batch.texts):
                said = True
                log.warning(
                    "DATASET=%s spells the tokenizer's %s, which is text there and ends no "
                    "document (only a line <|endoftext|> of a .txt file does)",
                    self._dataset,
                    end_of_text,
                )
            yield batch

    def _as_encoded(self, piece: Piece, tokens: Tokens) -> "EncodedPiece":
        return EncodedPiece(
            tokens=tokens,
            n_bytes=len(piece.text.encode()),
            held_out=self._is_held_out(piece.text) if piece.held_out is None else piece.held_out,
            alone=piece.held_out is None,
            starts_document=piece.starts_document,
            ends_document=piece.ends_document,
        )

    def _append(self, writer: ShardWriter, batch: "Batch[EncodedPiece]", tally: Tally) -> Tally:
        end = np.array([self._tokenizer.eos_token_id], dtype=np.uint16)
        finished, text_bytes = tally.documents, tally.text_bytes
        for text in batch.texts:
            finished += text.ends_document
            if not text.n_bytes:
                continue
            trains = writer.n_tokens("train") > 0
            # A part in the middle is taken out: the text before it does not go on after it.
            if trains and text.held_out and text.alone and not text.starts_document:
                writer.append("train", end)
            # Until there is text to train on, the held-out text may be all there is.
            limits = self._limits
            room = limits.validation_tokens if trains else limits.max_row_bytes
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
class EncodedPiece:
    """A piece as tokens. `n_bytes` is the size of its text in UTF-8.

    `alone`: whether it is held out was decided for this piece, not for its whole document.
    """

    tokens: Tokens
    n_bytes: int
    held_out: bool
    alone: bool
    starts_document: bool
    ends_document: bool


@dataclass(frozen=True)
class Batch(Generic[_Text]):
    """Texts that follow each other, and the source's position after the last of them.

    `begun` is (0, 0), unless the source failed within the batch: see `Tally`.
    """

    texts: Sequence[_Text]
    position: Position
    begun: tuple[int, int] = (0, 0)


def batches(
    source: Pieces, limits: DataLimits, begun: tuple[int, int] = (0, 0)
) -> Iterator[Batch[Piece]]:
    """The pieces of `source` in batches. `begun` counts the pieces and characters of the first
    batch that were read before: see `Tally`."""
    batch: list[Piece] = []
    pieces, characters = begun
    try:
        for piece in source:
            batch.append(piece)
            pieces, characters = pieces + 1, characters + len(piece.text)
            if characters >= limits.batch_characters or pieces >= limits.batch_pieces:
                yield Batch(batch, source.position)
                batch, pieces, characters = [], 0, 0
    except _AWAY:
        if batch:
            yield Batch(batch, source.position, (pieces, characters))
        raise
    if pieces:
        yield Batch(batch, source.position)


def in_order(
    work: Callable[[_Given], _Result], given: Iterator[_Given], in_flight: int
) -> Iterator[_Result]:
    """What `work` makes of each of `given`, in order. Up to `in_flight` of them are worked on by
    other threads while this one reads the next of `given`.

    Where the source of `given` goes away, the results of what it gave before come first. Where it
    fails otherwise, those in flight are dropped: a source that was changed may have given them.
    """
    pool = ThreadPoolExecutor(in_flight, thread_name_prefix="tokenizer")
    waiting: deque[Future[_Result]] = deque()
    try:
        for one in given:
            waiting.append(pool.submit(work, one))
            if len(waiting) > in_flight:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except _AWAY:
        while waiting:
            yield waiting.popleft().result()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
