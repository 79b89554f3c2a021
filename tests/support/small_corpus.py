"""A corpus of short documents, which small batches and shards of 3,000 tokens make a long one."""

import json
from pathlib import Path

import pytest

from app.data import tokenization as prepare_module
from app.data.tokenizer import TokenizerFiles, read_tokenizer

SHARD = 3000


def rows(count: int) -> list[str]:
    return [f"document {i}: " + "some words to be counted " * (i % 7) for i in range(count)]


ROWS = rows(400)


@pytest.fixture(scope="module")
def tokenizer(small_tokenizer: Path) -> TokenizerFiles:
    return read_tokenizer(small_tokenizer, "TOKENIZER=small")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "_BATCH_CHARACTERS", 1000)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in ROWS))
    return path
