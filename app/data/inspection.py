"""What training sees, as text and as numbers, read from DATA_DIR without a model or torch.

Shapes: T = SEQ_LEN tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from app.data.data_dir import DataDir
from app.data.sample_order import BatchGeometry, corpus_order
from app.data.shard_index import SPLITS, ShardIndex, Split
from app.data.shards import Tokens, TokenShards, verify
from app.data.tokenizer import TokenizerFiles, open_tokenizer
from app.errors import ConfigError, UsageError
from app.settings.variables import BatchSettings

N_IDS = 1 << 16  # of uint16 tokens
_LONGEST_BITS = 48

# A control character in the text could move the cursor of the terminal that shows it: its picture
# is printed instead.
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}


@dataclass(frozen=True)
class PreparedTokens:
    """The tokens in DATA_DIR that the settings name, and the tokenizer that made them."""

    data_dir: DataDir
    directory: Path
    index: ShardIndex
    tokenizer: TokenizerFiles

    def open(self, split: Split) -> TokenShards:
        return TokenShards(self.directory, split, self.index)


@dataclass(frozen=True)
class Place:
    """Which part of a run to show. `step` counts from 1, as in the log; `micro_step` None: all."""

    step: int
    rank: int
    world_size: int
    micro_step: int | None


@dataclass(frozen=True)
class Part:
    """A document, or the part of it in a sequence. `ends`: its end-of-text token is there too."""

    text: str
    tokens: int
    ends: bool


@dataclass(frozen=True)
class Sample:
    """A sequence as it is shown. `sample` counts from 0 in the whole run, `epoch` from 1."""

    micro_step: int
    row: int
    sample: int
    epoch: int
    sequence: int
    first_token: int
    documents: tuple[Part, ...]


def samples_of_step(
    prepared: PreparedTokens, batch: BatchSettings, seq_len: int, seed: int, place: Place
) -> list[Sample]:
    """What `place` shows, in order, of a run with SEED `seed` and sequences of `seq_len` tokens.

    Raises UsageError for a place that the run does not have, ConfigError if its tokens are not
    prepared or all of DATASET is less than a sequence, and what `TokenShards.read` raises.
    """
    shards = prepared.open("train")
    order = corpus_order(shards.n_tokens, seq_len, complete=prepared.index.complete, seed=seed)
    if order.n_sequences == 0:
        raise ConfigError(
            f"DATASET has only {shards.n_tokens} tokens to train on, and one sequence takes "
            f"SEQ_LEN + 1 = {seq_len + 1}"
        )
    codec = open_tokenizer(prepared.tokenizer.directory / "tokenizer.json")
    samples = []
    for micro_step, row, number in _numbers(batch, seq_len, place):
        needed = order.tokens_until(number + 1, seq_len)
        if not prepared.index.complete and shards.n_tokens < needed:
            # The whole window must be there: the last window of a corpus is smaller, and so it is
            # shuffled differently.
            raise ConfigError(
                f"step {place.step} is not prepared yet: its order is known with training token "
                f"{needed:,}, and {prepared.data_dir.setting} holds {shards.n_tokens:,}. "
                f"Prepare more: python -m app prepare --total_steps {place.step}"
            )
        sequence = order.sequence_at(number)
        first = sequence * seq_len
        documents = tuple(
            Part(codec.decode(ids.tolist()), len(ids) + ends, ends)
            for ids, ends in _parts(shards.read(first, seq_len), prepared.tokenizer.eos_token_id)
        )
        epoch = order.epoch_of(number) + 1
        samples.append(Sample(micro_step, row, number, epoch, sequence, first, documents))
    return samples


def step_text(place: Place, samples: list[Sample]) -> Iterator[str]:
    """Lines to read: a heading for each sequence, its text, and a line where a document ends."""
    for sample in samples:
        yield (
            f"━━ step {place.step}, micro-step {sample.micro_step}, rank {place.rank} of "
            f"{place.world_size}, row {sample.row}: sample {sample.sample:,}, epoch "
            f"{sample.epoch}, sequence {sample.sequence:,} (from token {sample.first_token:,})"
        )
        for part in sample.documents:
            if part.text:
                yield part.text.translate(_CONTROLS)
            if part.ends:
                yield "── end of document ──"


@dataclass(frozen=True)
class SplitStatistics:
    """`lengths` counts the documents by their length in tokens, with the end-of-text token: one
    (shortest, longest, documents) for each power of two. `longest` is the longest document."""

    tokens: int
    documents: int
    longest: int
    lengths: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class CorpusStatistics:
    """Both splits together. `bytes_per_token` leaves end-of-text tokens out. `tokens_used` of the
    `vocabulary` ids occur."""

    complete: bool
    source_documents: int
    text_bytes: int
    bytes_per_token: float
    vocabulary: int
    tokens_used: int
    share_of_top_1000: float
    splits: dict[Split, SplitStatistics]


def statistics(prepared: PreparedTokens, chunk_tokens: int = 1 << 22) -> CorpusStatistics:
    """One scan over all tokens, of which `chunk_tokens` at once are in memory.

    Raises what `verify` raises.
    """
    counts = np.zeros(N_IDS, dtype=np.int64)
    splits: dict[Split, SplitStatistics] = {}
    end = prepared.tokenizer.eos_token_id
    for split in SPLITS:
        for shard in prepared.index.shards[split]:
            verify(prepared.directory, shard)
        splits[split] = _scan(prepared.open(split), chunk_tokens, end, counts)
    text_tokens = int(counts.sum() - counts[end])
    used = np.sort(counts)[::-1]
    read = prepared.index.tally
    return CorpusStatistics(
        complete=prepared.index.complete,
        source_documents=read.documents,
        text_bytes=read.text_bytes,
        bytes_per_token=read.text_bytes / max(1, text_tokens),
        vocabulary=prepared.tokenizer.vocab_size,
        tokens_used=int(np.count_nonzero(counts)),
        share_of_top_1000=float(used[:1000].sum() / used.sum()),
        splits=splits,
    )


def statistics_text(prepared: PreparedTokens, found: CorpusStatistics) -> Iterator[str]:
    train, validation = found.splits["train"], found.splits["validation"]
    yield f"{prepared.directory}"
    whole = "the whole source" if found.complete else "so far, the source goes on"
    yield f"documents      {found.source_documents:,} read ({whole})"
    yield f"train          {train.documents:,} documents, {train.tokens:,} tokens"
    yield f"validation     {validation.documents:,} documents, {validation.tokens:,} tokens"
    yield f"text           {found.text_bytes:,} bytes, {found.bytes_per_token:.2f} bytes per token"
    yield (
        f"vocabulary     {found.tokens_used:,} of {found.vocabulary:,} tokens occur; the 1,000 "
        f"most frequent make {found.share_of_top_1000:.1%} of the text"
    )
    yield f"\n{'tokens per document':>23} {'documents':>10} {'share':>7}   (train)"
    for low, high, number in train.lengths:
        share = number / train.documents
        bar = "█" * round(40 * share)
        yield f"{f'{low:,} to {high:,}':>23} {number:>10,} {share:>7.1%}   {bar}".rstrip()
    if train.documents:
        yield f"longest {train.longest:,}, mean {train.tokens / train.documents:,.0f}"


def _numbers(batch: BatchSettings, seq_len: int, place: Place) -> Iterator[tuple[int, int, int]]:
    """(micro-step, row, number of the sample) of each sequence that `place` shows."""
    together = batch.batch_size * place.world_size
    if batch.global_batch_size % together:
        raise UsageError(
            f"GLOBAL_BATCH_SIZE={batch.global_batch_size} is not a multiple of BATCH_SIZE="
            f"{batch.batch_size} times --world_size {place.world_size}"
        )
    accumulation = batch.global_batch_size // together
    if place.rank >= place.world_size:
        raise UsageError(f"--rank {place.rank} is not below --world_size {place.world_size}")
    if place.micro_step is not None and place.micro_step >= accumulation:
        raise UsageError(
            f"--micro_step {place.micro_step}: a step has {accumulation}, counted from 0"
        )
    chosen = range(accumulation) if place.micro_step is None else [place.micro_step]
    geometry = BatchGeometry(
        batch.batch_size, batch.global_batch_size, seq_len, place.world_size, place.rank
    )
    for micro_step in chosen:
        for row, number in enumerate(geometry.samples(place.step - 1, micro_step)):
            yield micro_step, row, number


def _parts(ids: Tokens, end: int) -> Iterator[tuple[Tokens, bool]]:
    """`ids` cut after each end-of-text token: (ids without that token, whether it was there)."""
    start = 0
    for stop in np.flatnonzero(ids == end).tolist():
        yield ids[start:stop], True
        start = stop + 1
    if start < len(ids):
        yield ids[start:], False


def _scan(
    shards: TokenShards, chunk_tokens: int, end: int, counts: npt.NDArray[np.int64]
) -> SplitStatistics:
    """Statistics of one split; adds its tokens to `counts`, by id."""
    bins = np.zeros(_LONGEST_BITS, dtype=np.int64)
    last, longest = -1, 0
    for start in range(0, shards.n_tokens, chunk_tokens):
        chunk = shards.read(start, min(chunk_tokens, shards.n_tokens - start))
        counts += np.bincount(chunk, minlength=N_IDS)
        ends = np.flatnonzero(chunk == end) + start
        if len(ends):
            lengths = np.diff(ends, prepend=last)
            # frexp gives the number of bits: exact for lengths far below 2^53.
            bins += np.bincount(np.frexp(lengths)[1] - 1, minlength=_LONGEST_BITS)
            longest, last = max(longest, int(lengths.max())), int(ends[-1])
    filled = [
        (1 << bit, (1 << bit + 1) - 1, int(number)) for bit, number in enumerate(bins) if number
    ]
    return SplitStatistics(shards.n_tokens, int(bins.sum()), longest, tuple(filled))
