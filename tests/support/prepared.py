"""A dataset as tokens that are made at once and in this thread."""

from app.data.limits import DEFAULT_LIMITS, DataLimits
from app.data.preparation import Preparation, TokenNeed
from app.data.retries import Sleep
from app.data.shards import SHARD_TOKENS
from app.data.sources import pin_source
from app.data.tokenizer import TokenizerFiles
from app.settings.variables import DataSettings


def prepare(
    data: DataSettings,
    tokenizer: TokenizerFiles,
    needed: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    limits: DataLimits = DEFAULT_LIMITS,
    sleep: Sleep | None = None,
) -> Preparation:
    """At least `needed` training tokens; None: all of DATASET."""
    need = TokenNeed(stop=needed)
    source = pin_source(data, limits=limits, sleep=sleep)
    made = Preparation(source, tokenizer, need, shard_tokens=shard_tokens)
    made.run()
    return made
