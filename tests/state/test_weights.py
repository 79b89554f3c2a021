"""Weights are read into the model that they belong to."""

import dataclasses
from pathlib import Path

import pytest
import torch

from app.errors import IncompatibleRun
from app.model.smollm2 import SmolLM2
from app.settings.variables import OptimizerSettings
from app.state.snapshot import capture, restore
from app.training.optimizer import build_optimizer
from tests.support.training_state import SMALL, progress, trained, write


def test_tensors_of_another_model_are_refused(tmp_path: Path) -> None:
    model, optimizer = trained()
    write(capture(model, optimizer, progress(2)), tmp_path)
    wider = SmolLM2(dataclasses.replace(SMALL, intermediate_size=64))
    wider_optimizer = build_optimizer(wider, OptimizerSettings(), torch.device("cpu"))
    with pytest.raises(IncompatibleRun, match="gate_proj"):
        restore(tmp_path, wider, wider_optimizer)
