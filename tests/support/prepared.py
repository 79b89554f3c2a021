"""A dataset as tokens that are made at once and in this thread, and what is found in the files
that this leaves."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from app.data.limits import DEFAULT_LIMITS, DataLimits
from app.data.pieces import held_out
from app.data.preparation import Preparation
from app.data.retries import Sleep
from app.data.shards import SHARD_TOKENS
from app.data.sources import pin_source
from app.data.token_need import TokenNeed
from app.data.tokenizer import TokenizerFiles
from app.settings.variables import DataSettings


class Killed(BaseException):
    """Stands for SIGKILL: nothing but `finally` reacts to it."""


def prepare(
    data: DataSettings,
    tokenizer: TokenizerFiles,
    needed: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    limits: DataLimits = DEFAULT_LIMITS,
    sleep: Sleep | None = None,
    is_held_out: Callable[[str], bool] = held_out,
) -> Preparation:
    """At least `needed` training tokens; None: all of DATASET."""
    need = TokenNeed(stop=needed)
    source = pin_source(data, limits=limits, sleep=sleep)
    made = Preparation(
        source,
        tokenizer,
        need,
        shard_tokens=shard_tokens,
        limits=limits,
        is_held_out=is_held_out,
    )
    made.run()
    return made


def prepared_files(data_dir: Path) -> dict[str, str]:
    """Name and SHA-256 of all that was prepared."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (data_dir / "tokens").rglob("*")
        if path.suffix in (".bin", ".json")
    }


def decoded_splits(data: Preparation, tokenizer: TokenizerFiles) -> tuple[list[str], list[str]]:
    """The documents of both splits; each ends with the end-of-text token."""
    codec = Tokenizer.from_file(str(tokenizer.directory / "tokenizer.json"))
    splits = []
    for split in (data.train, data.validation):
        ids = split.read(0, split.n_tokens)
        assert ids[-1] == tokenizer.eos_token_id
        parts = np.split(ids, np.flatnonzero(ids == tokenizer.eos_token_id) + 1)[:-1]
        splits.append([codec.decode(part[:-1].tolist()) for part in parts])
    return splits[0], splits[1]


def change_defaults(**defaults: Any) -> None:
    """Change the defaults of `Preparation` in this process, for a job, which hands in none."""
    assert Preparation.__init__.__kwdefaults__ is not None
    Preparation.__init__.__kwdefaults__.update(defaults)
