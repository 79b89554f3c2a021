"""The shapes of the models that can be trained, as plain data.

No torch here: the settings check SEQ_LEN against a context length, and `--help`
answers, before anything heavy is imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """A Llama-compatible decoder. Field names are those of a Hugging Face config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int = 49_152
    max_position_embeddings: int = 2_048
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    initializer_range: float = 1 / 24

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def parameter_breakdown(self) -> dict[str, int]:
        """Number of parameters by part; the output layer is tied and adds none.

        K and V are smaller than Q: grouped-query attention gives them
        `num_key_value_heads` heads only.
        """
        d, kv = self.hidden_size, self.num_key_value_heads * self.head_dim
        layers = self.num_hidden_layers
        return {
            "embedding": self.vocab_size * d,
            "q_proj": layers * d * d,
            "k_proj": layers * d * kv,
            "v_proj": layers * d * kv,
            "o_proj": layers * d * d,
            "gate_proj": layers * d * self.intermediate_size,
            "up_proj": layers * d * self.intermediate_size,
            "down_proj": layers * d * self.intermediate_size,
            "norms": layers * 2 * d + d,
        }

    @property
    def parameter_count(self) -> int:
        return sum(self.parameter_breakdown().values())


AUTO_MODELS = ("smollm2-135m", "tiny")  # what MODEL=auto means with a GPU, and without one

# The shapes of the published SmolLM2 family, from their config.json files, and `tiny`.
PRESETS: dict[str, ModelConfig] = {
    "smollm2-135m": ModelConfig(
        hidden_size=576,
        intermediate_size=1_536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
    ),
    "smollm2-360m": ModelConfig(
        hidden_size=960,
        intermediate_size=2_560,
        num_hidden_layers=32,
        num_attention_heads=15,
        num_key_value_heads=5,
        initializer_range=0.02,
    ),
    "smollm2-1.7b": ModelConfig(
        hidden_size=2_048,
        intermediate_size=8_192,
        num_hidden_layers=24,
        num_attention_heads=32,
        num_key_value_heads=32,
        initializer_range=0.02,
    ),
    # 2.4 million parameters, two thirds of them in the layers: a laptop trains it in minutes.
    "tiny": ModelConfig(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        vocab_size=4_096,
        max_position_embeddings=256,
    ),
}

# A model that nobody has published has as many rows in its embedding as TOKENIZER has tokens. The
# vocab_size above is that of the builtin tokenizer.
FOLLOW_TOKENIZER = frozenset({"tiny"})

# What a model has instead of the general defaults, by the names of the variables. What a user sets
# always wins. docs/recipes.md says how these values were found.
RECIPES: Mapping[str, Mapping[str, int | float | str]] = {
    "tiny": {
        "TOTAL_STEPS": 2_000,
        "INIT": "scaled",
        "BATCH_SIZE": 8,
        "GLOBAL_BATCH_SIZE": 8,
        "LEARNING_RATE": 3e-3,
        "ADAM_BETA2": 0.95,
        "VAL_EVERY_STEPS": 100,
        "VAL_TOKENS": 16_384,
        "CHECKPOINT_EVERY_STEPS": 50,
        "LOG_EVERY_STEPS": 10,
        "SAMPLE_EVERY_STEPS": 250,
    },
}
