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


def test_fields_that_change_nothing_are_passed_over(tmp_path: Path) -> None:
    published = {  # as SmolLM2-135M's config.json and those that other programs write
        "_name_or_path": "x",
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": [0, 2],
        "hidden_act": "silu",
        "initializer_range": 0.041666666666666664,
        "is_llama_config": True,
        "layer_types": ["full_attention"] * 2,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000},
        "rope_scaling": None,
        "sliding_window": None,
        "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": {}},
        "transformers_version": "4.40.1",
        "unsloth_fixed": True,
        "use_cache": "true",
        "vocab_size": "300",
    }
    plain = read(tmp_path, json.dumps(GOOD | {"rms_norm_eps": 1e-5, "initializer_range": 1 / 24}))
    assert read(tmp_path, json.dumps(GOOD | published)) == plain


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
        {"head_dim": "wide"},
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_scaling": {"factor": 4.0}},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        {"partial_rotary_factor": 0.5},
        {"rope_interleaved": True},
        {"attention_bias": True},
        {"attention_bias": "false"},
        {"mlp_bias": True},
        {"sliding_window": 4096},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"attention_dropout": 0.1},
        {"final_logit_softcapping": 30.0},
        {"quantization_config": {"bits": 4}},
        {"embedding_multiplier": 12.0},
    ],
)
def test_a_shape_that_this_job_cannot_use_is_refused(
    change: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"config\.json") as caught:
        read(tmp_path, json.dumps(GOOD | change))
    assert "\n" not in str(caught.value)
    if "rope" in str(change):
        assert "rope" in str(caught.value) or "partial_rotary_factor" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "null",
        "[" * 100_000,
        json.dumps(GOOD | {"rope_scaling": [1]}),
        json.dumps(GOOD | {"hidden_size": "wide"}),
        json.dumps(GOOD | {"hidden_size": 64.5}),
        json.dumps(GOOD | {"rope_theta": float("nan")}),
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
