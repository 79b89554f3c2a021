"""state.json, also one of a newer version."""

import json
from pathlib import Path

import pytest

from app.errors import IncompatibleRun
from app.state.progress import STATE_FILE
from app.state.snapshot import capture, restore
from tests.support.training_state import progress, trained, write


def test_a_state_of_a_newer_version_is_not_called_damaged(tmp_path: Path) -> None:
    model, optimizer = trained()
    write(capture(model, optimizer, progress(2)), tmp_path)
    newer = json.loads((tmp_path / STATE_FILE).read_text()) | {"format_version": 99}
    newer["random"]["jax"] = "of a later day"
    (tmp_path / STATE_FILE).write_text(json.dumps(newer))
    with pytest.raises(IncompatibleRun, match=r"state\.json has format 99.*use the newer image"):
        restore(tmp_path, model, optimizer)
