"""Checkpoints on a volume that are whole by their manifest, and wrong all the same."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def change_state(checkpoint: Path, **changes: Any) -> None:
    """Set fields of state.json, and let the manifest agree."""
    path = checkpoint / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    agree(checkpoint, path.name)


def change_tensors(
    checkpoint: Path, file: str, change: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    """Let `change` do what it wants with the tensors of a file, and the manifest agree."""
    tensors = load_file(checkpoint / file)
    change(tensors)
    save_file(tensors, checkpoint / file)
    agree(checkpoint, file)


def agree(checkpoint: Path, file: str) -> None:
    """Let the manifest say what the file is now."""
    content, manifest = (checkpoint / file).read_bytes(), checkpoint / "manifest.json"
    record = json.loads(manifest.read_text())
    record["files"][file] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest.write_text(json.dumps(record))


def copied_as(checkpoint: Path, step: int, epoch: int = 1) -> Path:
    """A copy that has the name of another checkpoint, which its manifest says too."""
    copy = checkpoint.with_name(f"step-{step:010d}-e{epoch:06d}")
    shutil.copytree(checkpoint, copy)
    manifest = copy / "manifest.json"
    record = json.loads(manifest.read_text()) | {"step": step, "epoch": epoch}
    manifest.write_text(json.dumps(record))
    return copy
