"""The model one token at a time, of one sequence or of several.

Attention's keys and values are kept, not computed again.

Shapes: T tokens of one sequence, B sequences, D hidden size, M MLP size, H query heads, K key/value
heads, E head size (D = H·E), V vocabulary.

The arithmetic is that of `app.model.smollm2`, in fewer and larger operations: with one token at a
time, the time that Python takes between operations counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.model.smollm2 import DecoderLayer, RMSNorm, SmolLM2, rope_tables
from app.settings.presets import ModelConfig

_Matrices = Sequence[Tensor]
"""Matrices (inputs, outputs) that read the same input; their outputs lie side by side."""


@dataclass(frozen=True)
class _Layer:
    """A layer's weights. The projections have the outputs H·E + 2·K·E, D, 2·M and D."""

    attention_norm: RMSNorm
    qkv: _Matrices
    output: Tensor
    mlp_norm: RMSNorm
    gate_up: _Matrices
    down: Tensor


class KeyValueCache:
    """Keys and values of one sequence, for `capacity` tokens, allocated at once."""

    def __init__(self, config: ModelConfig, capacity: int, like: Tensor) -> None:
        self.capacity = capacity
        self.length = 0
        shape = (config.num_hidden_layers, config.num_key_value_heads, capacity, config.head_dim)
        self.keys, self.values = list(like.new_empty(shape)), list(like.new_empty(shape))


class InferenceModel:
    """Next-token logits of a sequence that grows, from the weights of a SmolLM2.

    `packed` copies the matrices that have more outputs than inputs: those that read the same
    input become one, and it lies as (inputs, outputs). For a single row, MKL on a CPU reads
    these up to 1.8 times as fast as (outputs, inputs). Otherwise the weights are shared with
    `model`, and nothing is copied: right on a GPU, and for a sample during training.
    """

    def __init__(self, model: SmolLM2, *, packed: bool = False) -> None:
        self.config = config = model.config
        decoder = model.model
        self._head = _matrices([decoder.embed_tokens], packed)[0]  # (D, V)
        self._norm = decoder.norm
        self._layers = [_layer(layer, packed) for layer in decoder.layers]
        self._turned_heads = config.num_attention_heads + config.num_key_value_heads
        positions = torch.arange(config.max_position_embeddings, device=self.device)
        cos, sin = rope_tables(
            positions, config.head_dim, config.rope_theta, decoder.embed_tokens.weight.dtype
        )
        # `_attend` swaps the halves of a head instead of negating one, so the sign is in the table:
        # that is `fused_layers.rotate` with one product less.
        half = config.head_dim // 2
        self._cos = cos  # (T, E)
        self._sin = torch.cat((-sin[:, :half], sin[:, half:]), dim=-1)

    @property
    def device(self) -> torch.device:
        return self._head.device

    def new_cache(self, capacity: int) -> KeyValueCache:
        """An empty cache for at most `capacity` tokens, no more than the model's context."""
        return KeyValueCache(self.config, capacity, self._head)

    def prefill(self, ids: Tensor, cache: KeyValueCache) -> Tensor:
        """Fill the cache with the tokens `ids` (T,) alone; the logits (V,) after the last."""
        cache.length = 0
        return self._logits(self._head[:, ids].t().contiguous(), cache)

    def step(self, token: int, cache: KeyValueCache) -> Tensor:
        """The logits (V,) after one more token."""
        return self._logits(self._head[:, token].contiguous()[None], cache)

    def steps(self, tokens: Sequence[int], caches: Sequence[KeyValueCache]) -> Tensor:
        """The logits (B, V) after one more token of each of B sequences, of any lengths.

        The weights are read once for all of them, which is what a step takes its time for.
        """
        positions = [cache.length for cache in caches]
        cos, sin = self._cos[positions], self._sin[positions]

        def attend(layer: int, heads: Tensor) -> Tensor:
            return torch.cat(
                [
                    self._attend(
                        heads[row : row + 1],
                        cos[row : row + 1],
                        sin[row : row + 1],
                        cache.keys[layer][:, : cache.length + 1],
                        cache.values[layer][:, : cache.length + 1],
                    )
                    for row, cache in enumerate(caches)
                ]
            )

        x = self._through(self._head[:, list(tokens)].t().contiguous(), attend)
        for cache in caches:
            cache.length += 1
        return torch.mm(_normed(x, self._norm), self._head)

    def _logits(self, x: Tensor, cache: KeyValueCache) -> Tensor:
        """x (T, D) are the embeddings of tokens that follow those in the cache."""
        past, length = cache.length, cache.length + x.shape[0]
        cos, sin = self._cos[past:length], self._sin[past:length]

        def attend(layer: int, heads: Tensor) -> Tensor:
            keys, values = cache.keys[layer], cache.values[layer]
            return self._attend(heads, cos, sin, keys[:, :length], values[:, :length])

        x = self._through(x, attend)
        cache.length = length
        return torch.mm(_normed(x[-1:], self._norm), self._head)[0]

    def _through(self, x: Tensor, attend: Callable[[int, Tensor], Tensor]) -> Tensor:
        """x (T, D) behind all layers. `attend` is `_attend` with the cache of a layer."""
        for number, layer in enumerate(self._layers):
            heads = _project(_normed(x, layer.attention_norm), layer.qkv)
            x = x + torch.mm(attend(number, heads), layer.output)
            gate, up = _project(_normed(x, layer.mlp_norm), layer.gate_up).chunk(2, dim=-1)
            x = x + torch.mm(F.silu(gate).mul_(up), layer.down)
        return x

    def _attend(
        self, projected: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """The values as each head mixes them (T, D).

        The last T of `keys` and `values` (K, past + T, E) are written here.
        """
        n_new, config = projected.shape[0], self.config
        heads = projected.view(n_new, -1, config.head_dim).transpose(0, 1)
        turned = heads[: self._turned_heads]
        turned = torch.addcmul(turned * cos, turned.roll(config.head_dim // 2, -1), sin)
        keys[:, -n_new:] = turned[config.num_attention_heads :]
        values[:, -n_new:] = heads[self._turned_heads :]
        out = F.scaled_dot_product_attention(
            turned[None, : config.num_attention_heads],
            keys[None],
            values[None],
            is_causal=n_new > 1,  # a single token attends to all the others
            enable_gqa=True,
        )
        return out[0].transpose(0, 1).reshape(n_new, -1)


def _layer(layer: nn.Module, packed: bool) -> _Layer:
    assert isinstance(layer, DecoderLayer)
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        attention_norm=layer.input_layernorm,
        qkv=_matrices([attention.q_proj, attention.k_proj, attention.v_proj], packed),
        output=_matrices([attention.o_proj], packed)[0],
        mlp_norm=layer.post_attention_layernorm,
        gate_up=_matrices([mlp.gate_proj, mlp.up_proj], packed),
        down=_matrices([mlp.down_proj], packed)[0],
    )


def _matrices(modules: Sequence[nn.Linear | nn.Embedding], packed: bool) -> _Matrices:
    weights = [module.weight.detach() for module in modules]
    if packed and sum(len(weight) for weight in weights) > weights[0].shape[1]:
        return [torch.cat(weights).t().contiguous()]
    return [weight.t() for weight in weights]


def _project(x: Tensor, matrices: _Matrices) -> Tensor:
    products = [torch.mm(x, matrix) for matrix in matrices]
    return products[0] if len(products) == 1 else torch.cat(products, dim=-1)


def _normed(x: Tensor, norm: RMSNorm) -> Tensor:
    """What `norm` gives, to the bit, in one call."""
    return norm.weight * F.rms_norm(x.float(), norm.weight.shape, eps=norm.eps).to(x.dtype)
