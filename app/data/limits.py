"""How large the parts are in which text is read, cut, fetched and tokenized.

One value with all of it is handed down from the functions that open a source, and from
`Preparation`. Only tests make one with other values, so that a text of some lines has many parts
and no test waits for a clock.
"""

from dataclasses import dataclass

from app.settings.variables import MAX_VALIDATION_TOKENS


@dataclass(frozen=True)
class DataLimits:
    """The real values are the defaults.

    `piece_size`, `document_bytes`, `long_row` and `turn_characters` decide where a piece ends,
    and so what is in a shard. Whoever changes one of them raises the version in `sources`: else
    a run that was begun before would go on with other data. Shards end where batches end: for
    `batch_characters`, `batch_pieces`, `validation_tokens` and `first_shard_tokens` the version in
    `tokenization` is raised.
    """

    # Characters of a row, bytes of a .txt file: a piece of a long text has at least so many.
    piece_size: int = 4_096
    # Bytes: a .txt file of up to so many is one document, a longer one is read as a stream.
    document_bytes: int = 64 * 2**10
    # Characters: a longer row is cut, since a tokenizer takes gigabytes for one long string.
    long_row: int = 1 << 20
    # Bytes: a longer row is refused, since a row is held in memory as a whole.
    max_row_bytes: int = 64 * 2**20
    # Characters that are hashed at once: a long row is not encoded as a whole.
    hashed_characters: int = 1 << 20
    # Characters after which a long document of a mixture gives way to the other sources.
    turn_characters: int = 1 << 18
    # Bytes that are read from a file at once.
    read_bytes: int = 1 << 20
    # Bytes that are fetched at once; each such block is a sign of life.
    fetched_bytes: int = 1 << 20
    # Bytes of each block that counts for the digest of a large file, and so for its fingerprint.
    digested_bytes: int = 1 << 16
    # Characters of a batch, after which it ends: a second or two of work for all cores.
    batch_characters: int = 1 << 21
    # Pieces after which a batch ends too: pieces of a few characters, or none, take memory as well.
    batch_pieces: int = 1 << 16
    # Batches: while one is encoded, another one becomes arrays and a third one is read.
    batches_in_flight: int = 2
    # Held-out tokens: text that is held out beyond them is not tokenized.
    validation_tokens: int = MAX_VALIDATION_TOKENS
    # Tokens: the first shard ends with the batch that reaches so many, if shards are not smaller
    # anyway. A model with a short context begins to train on it while the second one is made.
    first_shard_tokens: int = 1 << 19
    # Seconds of work that a kill or a power cut may cost, where a shard takes longer.
    keep_seconds: float = 30.0
    # Seconds for writing a file of some megabytes at the end: little of a grace period is left.
    close_seconds: float = 1.0
    # Seconds between two reports of the progress.
    report_seconds: float = 2.0


DEFAULT_LIMITS = DataLimits()
