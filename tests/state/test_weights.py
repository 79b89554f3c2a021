"""Weights are read into the model that they belong to."""

import dataclasses
from pathlib import Path

import pytest
import torch

from app.errors import Damaged, IncompatibleRun
from app.model.smollm2 import SmolLM2
from app.settings.variables import OptimizerSettings
from app.state.snapshot import capture, restore
from app.state.tensor_files import tensor_file
from app.state.weights import load_pretrained
from app.training.optimizer import build_optimizer
from tests.support.training_state import SMALL, progress, trained, write


def test_tensors_of_another_model_are_refused(tmp_path: Path) -> None:
    model, optimizer = trained()
    write(capture(model, optimizer, progress(2)), tmp_path)
    wider = SmolLM2(dataclasses.replace(SMALL, intermediate_size=64))
    wider_optimizer = build_optimizer(wider, OptimizerSettings(), torch.device("cpu"))
    with pytest.raises(IncompatibleRun, match="gate_proj"):
        restore(tmp_path, wider, wider_optimizer)


def pretrained(folder: Path, **changes: torch.Tensor) -> Path:
    tensors = {**SmolLM2(SMALL).state_dict(), **changes}
    (folder / "model.safetensors").write_bytes(b"".join(tensor_file(tensors)))
    return folder


@pytest.mark.parametrize(
    "name",
    ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"],
)
def test_tensors_that_follow_from_others_are_left_out(name: str, tmp_path: Path) -> None:
    load_pretrained(pretrained(tmp_path, **{name: torch.ones(8)}), SmolLM2(SMALL))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, tmp_path: Path) -> None:
    name = "model.norm.weight"
    folder = pretrained(tmp_path, **{name: torch.full((SMALL.hidden_size,), value)})
    with pytest.raises(Damaged, match=f"^{folder}/model.safetensors holds numbers in {name} that"):
        load_pretrained(folder, SmolLM2(SMALL))
