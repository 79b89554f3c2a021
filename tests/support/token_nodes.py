"""Machines that prepare tokens, each with a DATA_DIR of its own, beside one store of tokens."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.data.preparation import Preparation
from app.data.sources import pin_source
from app.data.token_cache import TOKENS, TokenCache
from app.data.token_need import TokenNeed
from app.data.tokenizer import TokenizerFiles
from app.settings.variables import DataSettings
from app.stores.contract import Store
from app.stores.opening import open_store
from tests.support.small_corpus import SHARD, SMALL_BATCHES


@pytest.fixture
def tokens_store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store", TOKENS)


class Node:
    """A machine with a DATA_DIR of its own."""

    def __init__(self, folder: Path, corpus: Path, tokenizer: TokenizerFiles, store: Store) -> None:
        self.data = DataSettings(dataset=str(corpus), data_dir=folder)
        self.tokenizer, self.store = tokenizer, store
        self.made: list[int] = []
        self.opened: list[Preparation] = []

    def open(self, **need: Any) -> Preparation:
        preparation = Preparation(
            pin_source(self.data),
            self.tokenizer,
            TokenNeed(**need),
            cache=lambda fingerprint: TokenCache(self.store, fingerprint),
            shard_tokens=SHARD,
            limits=SMALL_BATCHES,
        )
        self.opened.append(preparation)
        return preparation

    def prepare(self, **need: Any) -> Preparation:
        made = self.open(**need)
        made.run()
        self.made.append(made.progress.tokens_made)
        return made

    def files(self) -> dict[str, str]:
        return shards_in(self.data.data_dir / "tokens")


MakeNode = Callable[[str], Node]


def shards_in(folder: Path) -> dict[str, str]:
    """Name to SHA-256, of every shard in it or below."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.bin")
    }


@pytest.fixture
def node(
    tmp_path: Path, corpus: Path, tokenizer: TokenizerFiles, tokens_store: Store
) -> Iterator[MakeNode]:
    """Makes nodes by name. At the end they stop, and upload nothing into the next test's log."""
    nodes: list[Node] = []

    def make(name: str) -> Node:
        nodes.append(Node(tmp_path / name, corpus, tokenizer, tokens_store))
        return nodes[-1]

    yield make
    for preparation in (opened for node in nodes for opened in node.opened):
        preparation.close()


def read_tokens(data: Preparation, start: int, length: int) -> list[int]:
    data.require("train", np.array([start]), length, lambda _: None)
    return data.train.read(start, length).tolist()
