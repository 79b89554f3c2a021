"""Text to tokens, once: DATA_DIR/tokens/<fingerprint>/ is found, continued or begun.

One text in 100 is held out for validation, chosen by its hash, whether or not the run
validates: so the training data depend on nothing but the source and the tokenizer. The
first text never is, so that a dataset of one text can be trained on.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from app.errors import ConfigError
from app.failures import disk_failures
from app.locks import locked_folder
from app.sections import DataSettings
from app.shards import SHARD_TOKENS, ShardIndex, ShardWriter, TokenShards, read_index
from app.sources import Piece, documents, source_fingerprint
from app.tokenizer import TextEncoder, TokenizerFiles

HELD_OUT_ONE_IN = 100
MAX_VALIDATION_TOKENS = 4_000_000

_BATCH_CHARACTERS = 1 << 21  # enough for all cores, a second or two of work
_REPORT_SECONDS = 2.0
_VERSION = 2  # of the way that pieces become shards


@dataclass(frozen=True)
class PrepareProgress:
    """How far it is: what the cache holds, the time since this start, and the aim if known."""

    documents: int
    tokens: int
    seconds: float
    tokens_total: int | None


@dataclass(frozen=True)
class PreparedData:
    """Tokens to train on; `validation` is None where no text was held out.

    `complete` says that the whole source is tokenized. `fingerprint` names source and
    tokenizer; it is the same however much of the source is tokenized.
    """

    train: TokenShards
    validation: TokenShards | None
    tokenizer: TokenizerFiles
    fingerprint: str
    complete: bool


def prepare(
    data: DataSettings,
    tokenizer: TokenizerFiles,
    tokens_needed: int | None,
    report: Callable[[PrepareProgress], None],
    *,
    source: str | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> PreparedData:
    """At least `tokens_needed` training tokens (None: all), or as many as DATASET has.

    Tokens that were there before stay as they are: going on later only appends. Of two
    processes, one works and the other waits for it. `source` is the fingerprint of DATASET,
    where it is known. `report` is called every two seconds
    or so; what it raises ends the preparation, and costs what is not sealed.

    Raises what `documents` raises; ConfigError for a dataset without text; for DATA_DIR
    AccessDenied (not writable) or Unavailable (full); Damaged for a changed cache.
    """
    source = source or source_fingerprint(data)
    fingerprint = tokens_fingerprint(source, tokenizer)
    directory = data.data_dir / "tokens" / fingerprint[:24]
    reporter = _Reporter(report, tokens_needed)

    def enough(index: ShardIndex) -> bool:
        validation_needed = data.val_tokens if data.val_every_steps else 0
        return index.complete or (
            tokens_needed is not None
            and index.n_tokens("train") >= tokens_needed
            and index.n_tokens("validation") >= validation_needed
        )

    with disk_failures(f"DATA_DIR={data.data_dir}"):
        index = read_index(directory, source, tokenizer.fingerprint)
        if not enough(index):
            directory.mkdir(parents=True, exist_ok=True)
            with locked_folder(
                directory, lambda: reporter.update(index.documents, index.n_tokens("train"))
            ):
                index = read_index(directory, source, tokenizer.fingerprint)
                if not enough(index):
                    writer = ShardWriter(directory, index)
                    _tokenize(data, tokenizer, writer, enough, reporter, shard_tokens)
                    index = writer.index
        validation = index.shards["validation"]
        return PreparedData(
            train=TokenShards(directory, index.shards["train"]),
            validation=TokenShards(directory, validation) if validation else None,
            tokenizer=tokenizer,
            fingerprint=fingerprint,
            complete=index.complete,
        )


def tokens_fingerprint(source: str, tokenizer: TokenizerFiles) -> str:
    """SHA-256 (hex) of what decides about the tokens; names their folder."""
    identity = f"{_VERSION} {source} {tokenizer.fingerprint} {tokenizer.eos_token_id}"
    return hashlib.sha256(identity.encode()).hexdigest()


def check_enough(prepared: PreparedData, seq_len: int) -> None:
    """Raises ConfigError if not one sequence (inputs, and targets one further) can be cut."""
    n_tokens = prepared.train.n_tokens
    if n_tokens < seq_len + 1:
        raise ConfigError(
            f"DATASET has only {n_tokens} tokens to train on, and one sequence takes "
            f"SEQ_LEN + 1 = {seq_len + 1}: set a smaller SEQ_LEN or name a larger dataset"
        )


def held_out(text: str) -> bool:
    """Whether `text` is for validation: one in 100, by its SHA-256."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "little") % HELD_OUT_ONE_IN == 0


class _Reporter:
    """Calls `report` when its time has come."""

    def __init__(self, report: Callable[[PrepareProgress], None], tokens_total: int | None) -> None:
        self._report, self._total = report, tokens_total
        self._started = self._last = time.monotonic()

    def update(self, documents_done: int, tokens: int) -> None:
        now = time.monotonic()
        if now - self._last >= _REPORT_SECONDS:
            self._last = now
            self._report(PrepareProgress(documents_done, tokens, now - self._started, self._total))


def _tokenize(
    data: DataSettings,
    tokenizer: TokenizerFiles,
    writer: ShardWriter,
    enough: Callable[[ShardIndex], bool],
    reporter: _Reporter,
    shard_tokens: int,
) -> None:
    """Go on after the index's last piece until there is `enough`.

    Shards end, and the work stops, only where the text itself decides: after the batch
    that fills a shard. So their bytes depend neither on kills nor on how much was needed.
    """
    encoder = TextEncoder(tokenizer)
    end = np.array([tokenizer.eos_token_id], dtype=np.uint16)
    pieces, finished = writer.index.pieces, writer.index.documents
    text_bytes = writer.index.text_bytes
    for batch in _batches(documents(data, skip=pieces)):
        encoded = encoder.encode_batch([piece.text for piece in batch])
        for number, (piece, tokens) in enumerate(zip(batch, encoded, strict=True), start=pieces):
            if not piece.text:
                pass
            elif held_out(piece.text) and number > 0:
                if writer.n_tokens("validation") + len(tokens) < MAX_VALIDATION_TOKENS:
                    writer.append("validation", np.append(tokens, end))
                    text_bytes += len(piece.text.encode())
                # The text before the gap and the text after it do not belong together.
                if not piece.starts_document:
                    writer.append("train", end)
            else:
                writer.append("train", np.append(tokens, end) if piece.ends_document else tokens)
                text_bytes += len(piece.text.encode())
            finished += piece.ends_document
        pieces += len(batch)
        reporter.update(finished, writer.n_tokens("train"))
        if writer.n_pending("train") >= shard_tokens:
            writer.seal(pieces=pieces, documents=finished, text_bytes=text_bytes)
            if enough(writer.index):
                return
    if not writer.n_tokens("train"):
        raise ConfigError(f"DATASET={data.dataset} has no text to train on: name another dataset")
    writer.seal(pieces=pieces, documents=finished, text_bytes=text_bytes, complete=True)


def _batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
