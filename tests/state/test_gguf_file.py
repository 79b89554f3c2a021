"""GGUF files, read back with the package of llama.cpp, and computed with by a reading of our own.

Where llama.cpp's Python binding is installed, it computes too.
"""

import builtins
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from app.data.tokenizer import save_tokenizer, train_tokenizer
from app.errors import ConfigError
from app.model.huggingface import config_files
from app.model.smollm2 import SmolLM2
from app.settings.presets import ModelConfig
from app.state.gguf_file import GgufType, write_gguf
from app.state.tensor_files import tensor_file

gguf = pytest.importorskip("gguf", reason="needs requirements-gguf.txt")

SHAPE = ModelConfig(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=320,
    max_position_embeddings=64,
    rope_theta=500.0,
)
DIGITS = {"type": "Digits", "individual_digits": True}


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    shapes = SmolLM2.empty(SHAPE, torch.device("meta")).state_dict()
    return {
        name: 1 + 0.1 * torch.randn(t.shape) if t.dim() == 1 else 0.2 * torch.randn(t.shape)
        for name, t in shapes.items()
    }


@pytest.fixture
def checkpoint(weights: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    """A model of two layers, and a tokenizer of 300 tokens: 20 fewer than the model has."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    text = "def main(arguments): return 1234 + len(arguments)\n" * 40
    save_tokenizer(train_tokenizer([text], 300), folder)
    (folder / "model.safetensors").write_bytes(b"".join(map(bytes, tensor_file(weights))))
    for name, content in config_files(SHAPE, 0, 0).items():
        (folder / name).write_bytes(content)
    return folder


def written(checkpoint: Path, kind: GgufType = "f32") -> Path:
    target = checkpoint.with_name(f"{kind}.gguf")
    write_gguf(checkpoint, target, kind, "small", "make")
    return target


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def read_back(path: Path) -> dict[str, torch.Tensor]:
    """The tensors as float32."""
    tensors = gguf.GGUFReader(path).tensors
    return {
        t.name: torch.from_numpy(np.array(gguf.quants.dequantize(t.data, t.tensor_type)))
        for t in tensors
    }


def changed(checkpoint: Path, **parts: object) -> Path:
    path = checkpoint / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))
    return checkpoint


@pytest.mark.parametrize(
    ("kind", "dtype"), [("f32", torch.float32), ("bf16", torch.bfloat16), ("f16", torch.float16)]
)
def test_every_number_is_read_back_with_the_rows_of_q_and_k_in_pairs(
    kind: GgufType, dtype: torch.dtype, checkpoint: Path, weights: dict[str, torch.Tensor]
) -> None:
    found = read_back(written(checkpoint, kind))
    assert len(found) == len(weights)
    assert "output.weight" not in found  # tied: llama.cpp takes the embedding

    def typed(name: str) -> torch.Tensor:
        tensor = weights[name]
        return tensor if tensor.dim() == 1 else tensor.to(dtype).float()

    assert torch.equal(found["token_embd.weight"], typed("model.embed_tokens.weight"))
    assert torch.equal(found["output_norm.weight"], typed("model.norm.weight"))
    for layer in range(SHAPE.num_hidden_layers):
        for ours, theirs in {
            "input_layernorm": "attn_norm",
            "self_attn.v_proj": "attn_v",
            "self_attn.o_proj": "attn_output",
            "post_attention_layernorm": "ffn_norm",
            "mlp.gate_proj": "ffn_gate",
            "mlp.up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down",
        }.items():
            expected = typed(f"model.layers.{layer}.{ours}.weight")
            assert torch.equal(found[f"blk.{layer}.{theirs}.weight"], expected), ours
        half = SHAPE.head_dim // 2
        for letter, heads in (("q", 4), ("k", 2)):
            ours_of = typed(f"model.layers.{layer}.self_attn.{letter}_proj.weight")
            theirs_of = found[f"blk.{layer}.attn_{letter}.weight"]
            for head in range(heads):
                for number in range(half):
                    at = head * SHAPE.head_dim
                    assert torch.equal(theirs_of[at + 2 * number], ours_of[at + number])
                    assert torch.equal(theirs_of[at + 2 * number + 1], ours_of[at + half + number])


def test_the_shape_and_the_tokenizer_are_in_the_file(checkpoint: Path) -> None:
    said = fields(written(checkpoint, "bf16"))
    shown = {
        "general.architecture": "llama",
        "general.name": "small",
        "llama.vocab_size": 320,
        "llama.context_length": 64,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 500.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }
    assert {name: said[name] for name in shown} == shown
    assert said["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    tokens, kinds = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == 320
    assert (tokens[0], kinds[0]) == ("<|endoftext|>", gguf.TokenType.CONTROL)
    size = len(json.loads((checkpoint / "tokenizer.json").read_text())["model"]["vocab"])
    assert set(kinds[1:size]) == {gguf.TokenType.NORMAL}
    assert set(kinds[size:]) == {gguf.TokenType.UNUSED}
    merges = said["tokenizer.ggml.merges"]
    assert merges and all(len(merge.split(" ")) == 2 for merge in merges)


def test_smollm2s_own_way_of_splitting_has_a_name_too(checkpoint: Path) -> None:
    bytes_step = json.loads((checkpoint / "tokenizer.json").read_text())["pre_tokenizer"]
    steps = {"type": "Sequence", "pretokenizers": [DIGITS, bytes_step]}
    said = fields(written(changed(checkpoint, pre_tokenizer=steps)))
    assert said["tokenizer.ggml.pre"] == "smollm"


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [DIGITS]}},
        {"pre_tokenizer": None},
    ],
)
def test_a_tokenizer_that_llama_cpp_cannot_do_is_refused(
    parts: Mapping[str, object], checkpoint: Path
) -> None:
    with pytest.raises(ConfigError, match=r"llama\.cpp cannot do what tokenizer\.json does"):
        written(changed(checkpoint, **parts))


def test_a_number_that_float16_cannot_say_is_refused(
    checkpoint: Path, weights: dict[str, torch.Tensor]
) -> None:
    weights["model.embed_tokens.weight"][0, 0] = 1e6
    (checkpoint / "model.safetensors").write_bytes(b"".join(map(bytes, tensor_file(weights))))
    with pytest.raises(ConfigError, match="export with bf16"):
        written(checkpoint, "f16")


def test_without_the_package_the_command_that_installs_it_is_said(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="EXTRAS=gguf make train"):
        written(checkpoint)


def logits_as_llama_cpp(path: Path, ids: list[int]) -> torch.Tensor:
    """Logits (T, V) from the file alone; neighbours are turned together, as in llama.cpp."""
    said, w = fields(path), read_back(path)
    n_heads, n_kv = said["llama.attention.head_count"], said["llama.attention.head_count_kv"]
    size, theta = said["llama.rope.dimension_count"], said["llama.rope.freq_base"]
    eps = said["llama.attention.layer_norm_rms_epsilon"]
    angles = torch.arange(len(ids))[:, None] * theta ** (-torch.arange(0, size, 2) / size)
    turn = torch.polar(torch.ones_like(angles), angles)

    def normed(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], w[name], eps)

    def turned(x: torch.Tensor, heads: int) -> torch.Tensor:
        pairs = torch.view_as_complex(x.view(len(ids), heads, size // 2, 2))
        return torch.view_as_real(pairs * turn[:, None]).flatten(2).transpose(0, 1)

    x = w["token_embd.weight"][ids]
    for layer in range(said["llama.block_count"]):
        b = f"blk.{layer}."
        y = normed(x, b + "attn_norm.weight")
        q = turned(y @ w[b + "attn_q.weight"].T, n_heads)
        k = turned(y @ w[b + "attn_k.weight"].T, n_kv)
        v = (y @ w[b + "attn_v.weight"].T).view(len(ids), n_kv, size).transpose(0, 1)
        mixed = F.scaled_dot_product_attention(
            q[None], k[None], v[None], is_causal=True, enable_gqa=True
        )[0]
        x = x + mixed.transpose(0, 1).reshape(len(ids), -1) @ w[b + "attn_output.weight"].T
        y = normed(x, b + "ffn_norm.weight")
        gate, up = y @ w[b + "ffn_gate.weight"].T, y @ w[b + "ffn_up.weight"].T
        x = x + (F.silu(gate) * up) @ w[b + "ffn_down.weight"].T
    return normed(x, "output_norm.weight") @ w["token_embd.weight"].T


def logits_of_transformers(checkpoint: Path, ids: list[int]) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return logits


IDS = [0, 5, 77, 123, 260, 9, 31]


def test_a_reading_of_the_file_alone_computes_what_transformers_computes(checkpoint: Path) -> None:
    expected = logits_of_transformers(checkpoint, IDS)
    torch.testing.assert_close(
        logits_as_llama_cpp(written(checkpoint), IDS), expected, rtol=1e-3, atol=1e-3
    )


def test_llama_cpp_computes_what_transformers_computes_and_splits_text_alike(
    checkpoint: Path,
) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama.cpp's Python binding")
    from tokenizers import Tokenizer

    path = written(checkpoint)
    llama = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False)
    llama.eval(IDS)
    found = torch.from_numpy(np.array(llama.scores[: len(IDS)]))
    torch.testing.assert_close(found, logits_of_transformers(checkpoint, IDS), rtol=1e-2, atol=2e-2)
    text = "def main(x1234):\n\n  return 'it''s'  # ünïcode  42"
    ours = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(text).ids
    assert llama.tokenize(text.encode(), add_bos=False, special=False) == ours
