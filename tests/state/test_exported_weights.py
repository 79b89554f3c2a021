"""Weights in another type, from a file to a file."""

import json
from pathlib import Path

import pytest
import torch

from app.errors import Damaged, IncompatibleRun
from app.model.huggingface import config_files
from app.model.smollm2 import SmolLM2
from app.settings.presets import ModelConfig
from app.state.exported_weights import export_weights
from app.state.tensor_files import read_tensors, tensor_file

SHAPE = ModelConfig(
    hidden_size=8,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    vocab_size=16,
)
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    shapes = SmolLM2.empty(SHAPE, torch.device("meta")).state_dict()
    return {name: torch.randn(tensor.shape) for name, tensor in shapes.items()}


def written(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"".join(map(bytes, tensor_file(weights))))
    for name, content in config_files(SHAPE, 0, 0).items():
        (folder / name).write_bytes(content)
    return folder


def test_a_number_goes_to_the_nearest_one_and_a_tie_to_the_even_one(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    given = (0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF)
    bits = torch.tensor(given, dtype=torch.int32)
    weights[EMBEDDING].view(-1)[:4] = bits.view(torch.float32)
    target = tmp_path / "exported"
    target.mkdir()
    export_weights(written(tmp_path / "here", weights), target, "bfloat16")
    tensor = dict(read_tensors(target / "model.safetensors", [EMBEDDING]))[EMBEDDING]
    found = tensor.view(-1)[:4].view(torch.int16).tolist()
    assert found == [0x3F80, 0x3F82, 0x3F81, 0x3F80]
    config = json.loads((target / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")


@pytest.mark.parametrize("value", [float("nan"), 3.4e38])
def test_what_is_no_finite_number_in_the_new_type_is_refused(
    value: float, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    weights[EMBEDDING][0, 0] = value
    with pytest.raises(Damaged, match="not finite"):
        export_weights(written(tmp_path / "here", weights), tmp_path, "bfloat16")


def test_tensors_that_are_not_those_of_its_config_are_refused(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    weights["lm_head.bias"] = torch.zeros(16)
    with pytest.raises(IncompatibleRun, match=r"lm_head\.bias is unknown"):
        export_weights(written(tmp_path / "here", weights), tmp_path, "float32")
