"""How large the parts are in which text is read, cut and fetched.

One value with all of it is handed down from the functions that open a source. Only tests make
one with other values, so that a text of some lines has many parts.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataLimits:
    """The real values are the defaults.

    `piece_size`, `document_bytes`, `long_row` and `turn_characters` decide where a piece ends,
    and so what is in a shard. Whoever changes one of them raises the version in `sources`: else
    a run that was begun before would go on with other data.
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


DEFAULT_LIMITS = DataLimits()
