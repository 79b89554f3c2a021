"""A model of seconds as a Hugging Face directory, with weights that nobody has trained."""

import dataclasses
import shutil
from pathlib import Path

from safetensors.torch import save_file

from app.model.huggingface import config_files
from app.model.smollm2 import SmolLM2
from app.settings.presets import PRESETS, ModelConfig

SMALL = dataclasses.replace(
    PRESETS["tiny"], vocab_size=300, max_position_embeddings=32, initializer_range=0.3
)


def save_small_model(directory: Path, tokenizer: Path, config: ModelConfig = SMALL) -> None:
    """The wide `initializer_range` lets it be sure of what it says: no two texts are as likely."""
    directory.mkdir()
    model = SmolLM2(config)
    model.initialize(1)
    save_file(dict(model.state_dict()), directory / "model.safetensors", {"format": "pt"})
    for name, content in config_files(config, 0, 0).items():
        (directory / name).write_bytes(content)
    for path in tokenizer.iterdir():
        shutil.copyfile(path, directory / path.name)
