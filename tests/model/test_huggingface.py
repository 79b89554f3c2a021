"""Reading Hugging Face directories: nothing in a config.json can do harm."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.errors import ConfigError, Damaged, NotFound
from app.model.huggingface import read_config

GOOD: dict[str, Any] = {
    "model_type": "llama",
    "tie_word_embeddings": True,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "rope_theta": 100_000.0,
}


def read(tmp_path: Path, content: str) -> Any:
    (tmp_path / "config.json").write_text(content)
    return read_config(tmp_path)


def test_the_shape_is_the_directorys_own(tmp_path: Path) -> None:
    shape = read(tmp_path, json.dumps(GOOD))
    assert (shape.hidden_size, shape.num_key_value_heads, shape.rope_theta) == (64, 2, 100_000.0)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gpt2"},
        {"tie_word_embeddings": False},
        {"hidden_act": "gelu"},
        {"rope_scaling": {"rope_type": "llama3"}},
        {"hidden_size": 2**40},
        {"num_hidden_layers": 2**19},
        {"num_attention_heads": 0},
        {"num_hidden_layers": -1},
        {"num_attention_heads": 5},
        {"num_key_value_heads": 3},
        {"vocab_size": 70_000},
        {"head_dim": 100},
    ],
)
def test_a_shape_that_this_job_cannot_use_is_refused(
    change: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        read(tmp_path, json.dumps(GOOD | change))


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "null",
        "[" * 100_000,
        json.dumps(GOOD | {"rope_scaling": [1]}),
        json.dumps(GOOD | {"hidden_size": "wide"}),
        json.dumps({name: GOOD[name] for name in GOOD if name != "vocab_size"}),
    ],
    ids=str.__len__,
)
def test_a_config_that_is_none_is_damaged(content: str, tmp_path: Path) -> None:
    with pytest.raises(Damaged, match=r"config\.json"):
        read(tmp_path, content)


def test_a_folder_without_a_config_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"config\.json"):
        read_config(tmp_path)
