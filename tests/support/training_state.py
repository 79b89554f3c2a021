"""A small model that has made some steps, and the files of its state."""

import dataclasses
from pathlib import Path

import torch

from app.model.smollm2 import SmolLM2
from app.settings.presets import PRESETS
from app.settings.variables import OptimizerSettings
from app.state.progress import STATE_FILE, Progress
from app.state.random_state import RandomState
from app.state.snapshot import STATE_FILES, Snapshot, library_versions
from app.state.tensor_files import tensor_file
from app.stores.contract import Data
from app.training.optimizer import build_optimizer

SMALL = dataclasses.replace(PRESETS["tiny"], vocab_size=97)


def progress(step: int) -> Progress:
    return Progress(
        step=step,
        tokens=step * 10,
        train_loss=1.5,
        saved_at=1_700_000_000.0,
        trainer="torch",
        optimizer=OptimizerSettings().model_dump(),
        versions=library_versions(),
        random=RandomState.capture(),
    )


def state_without_tensors(step: int) -> dict[str, Data]:
    """The files of a checkpoint that are looked at, without a tensor in them."""
    tensors = {file: tensor_file({}) for file in STATE_FILES}
    return tensors | {STATE_FILE: [progress(step).model_dump_json().encode()]}


def optimizer_settings(optimizer: str) -> OptimizerSettings:
    return OptimizerSettings.model_validate({"optimizer": optimizer})


def trained(steps: int = 2, optimizer_name: str = "adamw") -> tuple[SmolLM2, torch.optim.Optimizer]:
    model = SmolLM2(SMALL)
    model.initialize(1)
    optimizer = build_optimizer(model, optimizer_settings(optimizer_name), torch.device("cpu"))
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.arange(16)[None]).logsumexp(-1).mean().backward()
        optimizer.step()
    return model, optimizer


def write(snapshot: Snapshot, directory: Path) -> Path:
    for name, data in snapshot.files({}).items():
        (directory / name).write_bytes(joined(data))
    return directory


def joined(data: Data) -> bytes:
    return b"".join(bytes(buffer) for buffer in data)
