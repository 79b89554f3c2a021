"""A small model that has made some steps, and the files of its state."""

import dataclasses
from pathlib import Path

import torch

from app.model.smollm2 import SmolLM2
from app.settings.presets import PRESETS
from app.settings.variables import OptimizerSettings
from app.state.progress import Progress
from app.state.random_state import RandomState
from app.state.snapshot import Snapshot, library_versions
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
