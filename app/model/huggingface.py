"""A Hugging Face model directory: where it is, the shape in it, and the files that we write.

Format: https://huggingface.co/docs/transformers (config.json of LlamaForCausalLM;
model.safetensors, or shards listed in model.safetensors.index.json).
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from app.errors import ConfigError, Damaged, NotFound
from app.model.hub_snapshot import hub_snapshot, local_directory
from app.settings.presets import ModelConfig

MODEL_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_Size = Annotated[int, Field(gt=0, le=2**20)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Numbers(BaseModel):
    """The numbers of config.json that decide about the shape; a number may stand in quotes."""

    hidden_size: _Size
    intermediate_size: _Size
    num_hidden_layers: _Size
    num_attention_heads: _Size
    num_key_value_heads: _Size
    vocab_size: _Size
    max_position_embeddings: _Size
    rope_theta: _Positive = 10_000.0
    rms_norm_eps: _Positive = 1e-6
    initializer_range: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.02


_READ = {*_Numbers.model_fields, "head_dim", "rope_parameters", "rope_scaling"}

# Fields with the only values that this job can do; without them, these values are meant.
_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "tie_word_embeddings": (True,),
    "hidden_act": ("silu", "swish"),
    "partial_rotary_factor": (1,),
}
# Fields that say nothing about what the model computes: of its file, of tokens, of generation, of
# labels, and of how a library is to run it. `pretraining_tp` splits a product of the same result.
_WITHOUT_EFFECT = re.compile(
    r"""
    _.* | transformers.* | unsloth.* | .*_token_ids? | tokenizer_class | architectures | auto_map
    | name_or_path | is_llama_config | is_decoder | dtype | torch_dtype | use_bfloat16 | use_cache
    | pretraining_tp | id2label | label2id | num_labels | problem_type | finetuning_task
    | task_specific_params | output_attentions | output_hidden_states | return_dict(_in_generate)?
    | torchscript | tf_legacy_loss | prefix
    | chunk_size_feed_forward | attn_implementation | remove_invalid_values | bad_words_ids
    | (begin_)?suppress_tokens | do_sample | early_stopping | temperature | top_k | top_p
    | typical_p | diversity_penalty | length_penalty | repetition_penalty | no_repeat_ngram_size
    | max_length | max_new_tokens | min_length | num_beams | num_beam_groups | num_return_sequences
    """,
    re.VERBOSE,
)
MOST_PARAMETERS = 8_000_000_000
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
    for name, value in _not_understood(config, rope):
        raise ConfigError(
            f"{path}: {name}={str(value)[:80]} is not supported: it may change what the model "
            "computes"
        )
    theta = rope.get("rope_theta") or config.get("rope_theta")
    heads = config.get("num_key_value_heads") or config.get("num_attention_heads")
    given = {**config, "num_key_value_heads": heads, "rope_theta": theta}
    try:
        numbers = _Numbers.model_validate({name: v for name, v in given.items() if v is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise Damaged(f"{path}: {first['loc'][0]}: {first['msg']}") from error
    result = ModelConfig(**numbers.model_dump())
    if result.parameter_count > MOST_PARAMETERS:
        raise ConfigError(
            f"{path} describes {result.parameter_count:,} parameters, more than this job trains "
            f"({MOST_PARAMETERS:,})"
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


def _not_understood(config: dict[str, Any], rope: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Fields that may change what the model computes, in a way that this job does not know.

    A field that is not there, or holds 0, false or nothing, switches nothing on.
    """
    for name in ("model_type", "tie_word_embeddings"):
        if not config.get(name):
            yield name, config.get(name)
    for name, value in config.items():
        if name in _FIXED:
            known = value in _FIXED[name]
        elif name == "layer_types":
            known = isinstance(value, list) and all(kind == "full_attention" for kind in value)
        else:
            known = name in _READ or bool(_WITHOUT_EFFECT.fullmatch(name))
        if value and not known:
            yield name, value
    for name, value in rope.items():
        plain = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1}
        if value and name != "rope_theta" and value != plain.get(name):
            yield "rope_parameters" if config.get("rope_parameters") else "rope_scaling", rope


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
