"""SmolLM2 in plain PyTorch: a Llama-compatible decoder.

Shapes: B sequences, T tokens, D hidden size, H query heads, K key/value heads,
E head size (D = H·E), V vocabulary.

The names of the parameters are those of `transformers`' LlamaForCausalLM, and so is
the arithmetic, operation by operation: a checkpoint of ours is one of theirs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from app.model.document_mask import Mask
from app.model.fused_layers import norm_linear, rms_norm, rotate, swiglu_linear
from app.settings.presets import ModelConfig


class RMSNorm(nn.Module):
    """The scale of `rms_norm`."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def rope_tables(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin, each (T, E), of rotary position embeddings (Su et al., 2021).

    The two halves of E form the rotated pairs, the Hugging Face layout. Computed in
    float32 whatever `dtype` is, since bfloat16 cannot tell far positions apart.
    """
    exponent = torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim
    angles = torch.outer(positions.float(), 1.0 / theta**exponent)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask | None) -> Tensor:
    """Attention of q (B, H, T, E) over k and v (B, K, T, E); without a `mask`, causal."""
    grouped = q.shape[1] != k.shape[1]
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    if isinstance(mask, Tensor):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    # Autocast does not reach into FlexAttention, which wants one dtype.
    q, k = q.to(v.dtype), k.to(v.dtype)
    out = flex_attention(q, k, v, block_mask=mask, enable_gqa=grouped)
    assert isinstance(out, Tensor)
    return out


class Attention(nn.Module):
    """Causal grouped-query attention: H query heads share K key/value heads."""

    def __init__(self, config: ModelConfig, fused: bool) -> None:
        super().__init__()
        self.head_dim, self.fused = config.head_dim, fused
        d, kv = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(d, d, bias=False)
        self.k_proj = nn.Linear(d, kv, bias=False)
        self.v_proj = nn.Linear(d, kv, bias=False)
        self.o_proj = nn.Linear(d, d, bias=False)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, mask: Mask | None = None
    ) -> Tensor:
        """What `q_proj`, `k_proj` and `v_proj` made, each (B, T, heads · E), to (B, T, D)."""
        batch, length, _ = q.shape
        heads = (batch, length, -1, self.head_dim)
        q, k = (rotate(x.view(heads).transpose(1, 2), cos, sin, fused=self.fused) for x in (q, k))
        out = attend(q, k, v.view(heads).transpose(1, 2), mask)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    """SwiGLU feed-forward block (Shazeer, 2020)."""

    def __init__(self, config: ModelConfig, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        d, hidden = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(d, hidden, bias=False)
        self.up_proj = nn.Linear(d, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, d, bias=False)

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        """What `gate_proj` and `up_proj` made, both (B, T, F), to (B, T, D)."""
        return swiglu_linear(gate, up, self.down_proj.weight, fused=self.fused)


class DecoderLayer(nn.Module):
    """Pre-norm residual block: attention, then MLP."""

    def __init__(self, config: ModelConfig, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.self_attn = Attention(config, fused)
        self.mlp = MLP(config, fused)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Mask | None = None) -> Tensor:
        attn, mlp = self.self_attn, self.mlp
        q, k, v = self._projections(self.input_layernorm, x, attn.q_proj, attn.k_proj, attn.v_proj)
        x = x + attn(q, k, v, cos, sin, mask)
        gate, up = self._projections(self.post_attention_layernorm, x, mlp.gate_proj, mlp.up_proj)
        return x + mlp(gate, up)

    def _projections(self, norm: RMSNorm, x: Tensor, *linears: nn.Linear) -> tuple[Tensor, ...]:
        """Each of the linear maps of norm(x)."""
        weights = (linear.weight for linear in linears)
        return norm_linear(x, norm.weight, norm.eps, *weights, fused=self.fused)


class Decoder(nn.Module):
    """Embedding, layers and final norm: (B, T) token ids to (B, T, D)."""

    def __init__(self, config: ModelConfig, gradient_checkpointing: bool, fused: bool) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = gradient_checkpointing
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, fused) for _ in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        mask: Mask | None = None,
    ) -> Tensor:
        x = self.embed_tokens(input_ids)
        index = torch.arange(input_ids.shape[1], device=input_ids.device)
        cos, sin = rope_tables(index, self.config.head_dim, self.config.rope_theta, x.dtype)
        if positions is not None:
            cos, sin = cos[positions][:, None], sin[positions][:, None]  # (B, 1, T, E)
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(layer, x, cos, sin, mask, use_reentrant=False)
            else:
                x = layer(x, cos, sin, mask)
        return self.norm(x)


class SmolLM2(nn.Module):
    """The language model: (B, T) token ids to (B, T, V) logits, output layer tied.

    Packed documents are kept apart by `positions` (B, T) below T and a `mask`, which
    `app.model.document_mask` makes. With `fused_layers` False, autograd alone makes the
    gradients: the same function, slower, to compare with.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        gradient_checkpointing: bool = False,
        fused_layers: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config, gradient_checkpointing, fused_layers)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        mask: Mask | None = None,
    ) -> Tensor:
        hidden = self.model(input_ids, positions, mask)
        return F.linear(hidden, self.model.embed_tokens.weight)

    @classmethod
    def empty(
        cls, config: ModelConfig, device: torch.device, *, gradient_checkpointing: bool = False
    ) -> "SmolLM2":
        """A model with memory for its weights and nothing in it: load them, or `initialize`.

        The constructor alone would draw weights that nobody uses, which takes a second for 135M.
        """
        with _WithoutDrawing(), torch.device(device):
            return cls(config, gradient_checkpointing=gradient_checkpointing)

    @torch.no_grad()
    def initialize(self, seed: int, init: str = "normal") -> None:
        """Draw every matrix from N(0, std²), from `seed` alone; std is initializer_range. Norms
        are ones.

        With init="scaled", std is divided by sqrt(2 · layers) for o_proj and down_proj, the
        two matrices of a layer that write to the residual stream. So does nanotron, which
        trained SmolLM2 (StandardParametrizator in src/nanotron/scaling/parametrization.py);
        the idea is GPT-2's (Radford et al., 2019).

        Drawn on the CPU, by one generator through the modules in order, so that every
        device and every trainer starts from the same weights.
        """
        generator = torch.Generator().manual_seed(seed)
        scale = (2 * self.config.num_hidden_layers) ** -0.5 if init == "scaled" else 1.0
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                to_residual = name.endswith(("o_proj", "down_proj"))
                std = self.config.initializer_range * (scale if to_residual else 1.0)
                drawn = torch.empty(module.weight.shape)
                drawn.normal_(0.0, std, generator=generator)
                module.weight.copy_(drawn)
            elif isinstance(module, RMSNorm):
                module.weight.fill_(1.0)


class _WithoutDrawing(TorchFunctionMode):
    """Inside this context, new modules leave the memory of their weights as it is.

    To make them on the meta device would cost more than it saves, since that loads half of torch.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        if func in (nn.init.kaiming_uniform_, nn.init.normal_):
            return given["tensor"]
        return func(*args, **given)


def flops_per_token(config: ModelConfig, seq_len: int, *, causal: bool = True) -> int:
    """Floating-point operations of a training step per token; `causal` counts attention once.

    6 per parameter (PaLM, appendix B; the tied output layer is in N once, and is the
    only use of the embedding that multiplies), plus attention's two products:
    12 · layers · D · T for a full square, half of it under the causal mask.
    """
    square = 12 * config.num_hidden_layers * config.hidden_size * seq_len
    return 6 * config.parameter_count + (square // 2 if causal else square)
