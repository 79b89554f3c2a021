"""What the benches compare with: `transformers`' Llama, with this project's weights."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from app.settings.presets import ModelConfig


def llama(config: ModelConfig, weights: Mapping[str, Tensor]) -> Any:
    """A LlamaForCausalLM of the same shape, in whose memory are `weights`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=True,
        )
    )
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and missing == ["lm_head.weight"], (missing, unexpected)
    return model
