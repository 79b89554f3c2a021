"""A checkpoint as one GGUF file, for llama.cpp and Ollama; its tokenizer is inside.

The format is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, written by the package
`gguf` of the same project.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor

from app.data.tokenizer import open_tokenizer
from app.errors import ConfigError
from app.model.huggingface import MODEL_FILE, read_config
from app.settings.calling import how_to_install
from app.settings.presets import ModelConfig
from app.settings.variables import StartedBy
from app.state.tensor_files import read_shapes, read_tensors
from app.state.weights import check_finite

if TYPE_CHECKING:
    from gguf import GGUFWriter

TOKENIZER_FILE = "tokenizer.json"

GgufType = Literal["bf16", "f16", "f32"]

_TYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
_FILE_TYPES = {"bf16": "MOSTLY_BF16", "f16": "MOSTLY_F16", "f32": "ALL_F32"}
# The steps of a pre-tokenizer that llama.cpp knows, by the name that it has for them there.
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
_KNOWN_STEPS: Mapping[str, list[dict[str, Any]]] = {"gpt-2": [_BYTES], "smollm": [_DIGITS, _BYTES]}
_OF_A_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    checkpoint: Path, target: Path, kind: GgufType, name: str, started_by: StartedBy
) -> None:
    """Write the model in the folder `checkpoint` to the file `target`.

    Matrices are in the type `kind`, norms in float32. Raises ConfigError without the package
    `gguf`, for a tokenizer that llama.cpp has no name for, and for numbers that float16 cannot say;
    Damaged, IncompatibleRun and OSError.
    """
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(
            f"--gguf needs the package gguf: {how_to_install('gguf', started_by)}"
        ) from error
    config = read_config(checkpoint)
    writer = gguf.GGUFWriter(target, "llama")
    try:
        _add_shape(writer, config, name)
        writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[kind]])
        _add_tokenizer(writer, checkpoint, config.vocab_size)
        shapes = _gguf_shapes(checkpoint / MODEL_FILE)
        for tensor_name, shape in shapes.items():
            matrix = len(shape) > 1
            raw = gguf.GGMLQuantizationType[kind.upper() if matrix else "F32"]
            size = int(np.prod(shape)) * (2 if matrix and kind != "f32" else 4)
            writer.add_tensor_info(tensor_name, shape, np.dtype(np.float32), size, raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for array in _arrays(checkpoint / MODEL_FILE, config, kind):
            writer.write_tensor_data(array)
    finally:
        writer.close()


def _add_shape(writer: "GGUFWriter", config: ModelConfig, name: str) -> None:
    writer.add_name(name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _gguf_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor, in the order of the file."""
    return {_gguf_name(name): tuple(shape) for name, shape in read_shapes(path).items()}


def _arrays(path: Path, config: ModelConfig, kind: GgufType) -> Iterator[npt.NDArray[np.uint8]]:
    """The tensors' bytes, in the order of the file; one is in memory at a time."""
    for name, tensor in _tensors(path):
        if tensor.dim() == 1:
            yield _bytes_of(tensor)
            continue
        heads = {
            "q_proj.weight": config.num_attention_heads,
            "k_proj.weight": config.num_key_value_heads,
        }.get(".".join(name.split(".")[-2:]))
        typed = (in_pairs(tensor, heads) if heads else tensor).to(_TYPES[kind])
        if not typed.isfinite().all():
            raise ConfigError(f"{name} has numbers that {kind} cannot say: export with bf16")
        yield _bytes_of(typed)


def _bytes_of(tensor: Tensor) -> npt.NDArray[np.uint8]:
    data: npt.NDArray[np.uint8] = tensor.contiguous().view(torch.uint8).numpy()
    return data


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in read_tensors(path, read_shapes(path)):
        check_finite(path, name, tensor)
        yield name, tensor


def in_pairs(weight: Tensor, heads: int) -> Tensor:
    """The rows of q_proj or k_proj (heads·E, D) in the order in which llama.cpp rotates them.

    It turns the numbers 0 and 1 of a head together, then 2 and 3. Hugging Face turns number i and
    number i + E/2.
    """
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def _gguf_name(name: str) -> str:
    plain = name.removeprefix("model.").removesuffix(".weight")
    if plain in ("embed_tokens", "norm"):
        return {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight"}[plain]
    _, number, part = plain.split(".", 2)
    return f"blk.{number}.{_OF_A_LAYER[part]}.weight"


def _add_tokenizer(writer: "GGUFWriter", checkpoint: Path, size: int) -> None:
    """The vocabulary, filled up to the `size` of the model with tokens that no text gives."""
    from gguf import TokenType

    path = checkpoint / TOKENIZER_FILE
    tokenizer = open_tokenizer(path)
    content = json.loads(path.read_text("utf-8"))
    special = {token["id"]: token["special"] for token in content.get("added_tokens", [])}
    tokens, kinds = [], []
    for number in range(size):
        token = tokenizer.id_to_token(number)
        kind = TokenType.UNUSED if token is None else TokenType.NORMAL
        if number in special:
            kind = TokenType.CONTROL if special[number] else TokenType.USER_DEFINED
        tokens.append(f"[UNUSED{number}]" if token is None else token)
        kinds.append(kind)
    merges = content["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_name_in_llama_cpp(content, path))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    said = json.loads((checkpoint / "config.json").read_text("utf-8"))
    roles = {"bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id}
    for role, add in roles.items():
        if isinstance(number := said.get(f"{role}_token_id"), int):
            add(number)
    named = json.loads((checkpoint / "tokenizer_config.json").read_text("utf-8")).get("unk_token")
    unknown = tokenizer.token_to_id(named) if isinstance(named, str) else None
    if unknown is not None:
        writer.add_unk_token_id(unknown)
    writer.add_add_bos_token(_begins_with_bos(tokenizer, said.get("bos_token_id"), path))
    writer.add_add_eos_token(False)


def _name_in_llama_cpp(content: Mapping[str, Any], path: Path) -> str:
    """What llama.cpp calls the way in which this tokenizer.json splits text.

    Raises ConfigError for one that it cannot do: its file would be read as other tokens.
    """
    model, steps = content["model"], content.get("pre_tokenizer") or {}
    plain = [
        {name: step.get(name) for name in ("type", *known)}
        for step in steps.get("pretokenizers", [steps])
        for known in (_BYTES if step.get("type") == "ByteLevel" else _DIGITS,)
    ]
    name = next((name for name, known in _KNOWN_STEPS.items() if plain == known), None)
    changes = [key for key in ("byte_fallback", "ignore_merges", "dropout") if model.get(key)]
    if model.get("type") != "BPE" or name is None or content.get("normalizer") or changes:
        raise ConfigError(
            f"--gguf: llama.cpp cannot do what {path.name} does: only byte-level BPE as GPT-2's, "
            f"or SmolLM2's with single digits, can be written (this is {model.get('type')}, "
            f"pre-tokenizer {[step['type'] for step in plain]}, normalizer "
            f"{(content.get('normalizer') or {}).get('type')}). Export without --gguf"
        )
    return name


def _begins_with_bos(tokenizer: Tokenizer, bos: int | None, path: Path) -> bool:
    """Whether a text begins with that token. Raises ConfigError where other tokens are added."""
    added = tokenizer.encode("").ids
    if added not in ([], [bos]):
        raise ConfigError(f"--gguf: {path.name} adds the tokens {added} to a text")
    return bool(added)
