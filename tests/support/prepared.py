"""A dataset as its pieces, or as tokens that are made at once and in this thread."""

from app.data.preparation import Preparation, TokenNeed
from app.data.shards import SHARD_TOKENS
from app.data.sources import Pieces, Position, pin_source
from app.data.tokenizer import TokenizerFiles
from app.settings.variables import DataSettings


def documents(data: DataSettings, after: Position | None = None) -> Pieces:
    """The pieces of DATASET as it is now."""
    return pin_source(data).pieces(after)


def prepare(
    data: DataSettings,
    tokenizer: TokenizerFiles,
    needed: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> Preparation:
    """At least `needed` training tokens; None: all of DATASET."""
    need = TokenNeed(stop=needed)
    made = Preparation(pin_source(data), tokenizer, need, shard_tokens=shard_tokens)
    made.run()
    return made
