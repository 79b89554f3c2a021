"""Checkpoints on a volume that are whole by their manifest, and wrong all the same."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any


def change_state(checkpoint: Path, **changes: Any) -> None:
    """Set fields of state.json, and let the manifest agree."""
    path = checkpoint / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    content, manifest = path.read_bytes(), checkpoint / "manifest.json"
    record = json.loads(manifest.read_text())
    record["files"]["state.json"] = {
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    manifest.write_text(json.dumps(record))


def copied_as(checkpoint: Path, step: int, epoch: int = 1) -> Path:
    """A copy that has the name of another checkpoint, which its manifest says too."""
    copy = checkpoint.with_name(f"step-{step:010d}-e{epoch:06d}")
    shutil.copytree(checkpoint, copy)
    manifest = copy / "manifest.json"
    record = json.loads(manifest.read_text()) | {"step": step, "epoch": epoch}
    manifest.write_text(json.dumps(record))
    return copy
