"""Tokens of a dataset, made at once and in this thread."""

from app.preparation import Preparation, TokenNeed
from app.sections import DataSettings
from app.shards import SHARD_TOKENS
from app.sources import source_fingerprint
from app.tokenizer import TokenizerFiles


def prepare(
    data: DataSettings,
    tokenizer: TokenizerFiles,
    needed: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> Preparation:
    """At least `needed` training tokens; None: all of DATASET."""
    need = TokenNeed(stop=needed)
    made = Preparation(data, tokenizer, source_fingerprint(data), need, shard_tokens=shard_tokens)
    made.run()
    return made
