"""How much text is tokenized at once, and how often what was made is written and reported.

One value with all of it is handed down from `Preparation`. Only tests make one with other values,
so that a corpus of some lines has many batches and no test waits for a clock.
"""

from dataclasses import dataclass

from app.settings.variables import MAX_VALIDATION_TOKENS


@dataclass(frozen=True)
class TokenizationLimits:
    """The real values are the defaults.

    Shards end where batches end. So whoever changes `batch_characters` or `batch_pieces`, or
    `validation_tokens`, raises the version in `tokenization`: else a run that was begun before
    would go on with other shards.
    """

    # Characters of a batch, after which it ends: a second or two of work for all cores.
    batch_characters: int = 1 << 21
    # Pieces after which a batch ends too: pieces of a few characters, or none, take memory as well.
    batch_pieces: int = 1 << 16
    # Batches: while one is encoded, another one becomes arrays and a third one is read.
    batches_in_flight: int = 2
    # Held-out tokens: text that is held out beyond them is not tokenized.
    validation_tokens: int = MAX_VALIDATION_TOKENS
    # Seconds of work that a kill or a power cut may cost, where a shard takes longer.
    keep_seconds: float = 30.0
    # Seconds for writing a file of some megabytes at the end: little of a grace period is left.
    close_seconds: float = 1.0
    # Seconds between two reports of the progress.
    report_seconds: float = 2.0


TOKENIZATION_LIMITS = TokenizationLimits()
