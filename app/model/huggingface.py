"""A Hugging Face model directory: where it is, the shape in it, and the files that we write.

Format: https://huggingface.co/docs/transformers (config.json of LlamaForCausalLM;
model.safetensors, or shards listed in model.safetensors.index.json).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.errors import ConfigError, Damaged, NotFound
from app.model.hub_snapshot import hub_snapshot, local_directory
from app.settings.presets import ModelConfig

MODEL_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)
_LARGEST_SIZE = 2**20
_MOST_PARAMETERS = 8_000_000_000
_FILES = ["config.json", MODEL_FILE, "model-*.safetensors", INDEX_FILE, "tokenizer*", "special_*"]


def model_directory(spec: str, variable: str) -> Path:
    """The local directory of `spec`, a path or a hub id; `variable` is named in errors."""
    setting = f"{variable}={spec}"
    return local_directory(spec, setting) or hub_snapshot(spec, setting, _FILES)


def read_config(directory: Path) -> ModelConfig:
    """The shape in `directory`/config.json, with its own RoPE theta and context.

    Raises ConfigError for an architecture that is not plain Llama.
    """
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist: not a Hugging Face model directory") from error
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise Damaged(f"{path} is not a JSON object")
    return _shape(config, path)


def _shape(config: dict[str, Any], path: Path) -> ModelConfig:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise Damaged(f"{path}: rope_parameters is not a JSON object")
    unsupported = {
        "model_type": config.get("model_type") != "llama",
        "tie_word_embeddings": not config.get("tie_word_embeddings", False),
        "attention_bias": config.get("attention_bias", False),
        "mlp_bias": config.get("mlp_bias", False),
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "rope_parameters": rope.get("rope_type", "default") != "default",
    }
    if wrong := [name for name, is_wrong in unsupported.items() if is_wrong]:
        raise ConfigError(f"{path}: {wrong[0]}={config.get(wrong[0])!r} is not supported")
    try:
        result = ModelConfig(
            **{name: int(config[name]) for name in _SIZES},
            num_key_value_heads=int(
                config.get("num_key_value_heads") or config["num_attention_heads"]
            ),
            rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
            rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            initializer_range=float(config.get("initializer_range", 0.02)),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Damaged(f"{path}: {error} is missing or not a number") from error
    sizes = {name: getattr(result, name) for name in (*_SIZES, "num_key_value_heads")}
    if wrong := [name for name, size in sizes.items() if not 0 < size <= _LARGEST_SIZE]:
        raise ConfigError(f"{path}: {wrong[0]}={sizes[wrong[0]]} cannot be used")
    if result.parameter_count > _MOST_PARAMETERS:
        raise ConfigError(
            f"{path} describes {result.parameter_count:,} parameters, more than this job trains "
            f"({_MOST_PARAMETERS:,})"
        )
    if (
        result.hidden_size % result.num_attention_heads
        or result.num_attention_heads % result.num_key_value_heads
    ):
        raise ConfigError(f"{path}: heads, key/value heads and hidden_size do not divide")
    if config.get("head_dim") not in (None, result.head_dim):
        raise ConfigError(f"{path}: head_dim={config['head_dim']} is not hidden_size / heads")
    if result.vocab_size > 65_536:
        raise ConfigError(f"{path}: vocab_size={result.vocab_size} does not fit uint16 tokens")
    return result


def config_files(
    config: ModelConfig, bos_token_id: int | None, eos_token_id: int
) -> dict[str, bytes]:
    """config.json and generation_config.json of a model, for `transformers`."""
    special = {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id}
    shape = asdict(config)
    shape.update(
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        hidden_act="silu",
        head_dim=config.head_dim,
        attention_bias=False,
        mlp_bias=False,
        attention_dropout=0.0,
        rope_scaling=None,
        tie_word_embeddings=True,
        use_cache=True,
        dtype="float32",
        torch_dtype="float32",
        **special,
    )
    return {
        "config.json": _json_bytes(shape),
        "generation_config.json": _json_bytes({"_from_model_config": True, **special}),
    }


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
