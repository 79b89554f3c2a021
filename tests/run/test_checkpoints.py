"""Which checkpoints a run has, and in which order."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.errors import Damaged, NotFound
from app.run.checkpoints import read_latest, read_manifest
from app.run.fetching import newest_valid
from app.run.layout import LATEST, MANIFEST, CheckpointName
from app.run.retention import prune
from app.run.view import read_view
from app.stores.contract import Store
from tests.support.stored_run import FreeLease, commit_step, committed_steps, go_on_from


def test_checkpoints_order_by_step_then_epoch(folder: Store, tmp_path: Path) -> None:
    for step, epoch in ((20, 2), (40, 1), (40, 2), (9, 9)):
        commit_step(folder, step, epoch=epoch)
    names = [str(stored.name) for stored in read_view(folder).checkpoints]
    assert names[:2] == ["step-0000000040-e000002", "step-0000000040-e000001"]
    found = newest_valid(folder, read_view(folder), tmp_path)
    assert found is not None and found.name == CheckpointName(40, 2)


def test_a_checkpoint_is_found_by_step_name_or_latest(folder: Store) -> None:
    first, second = commit_step(folder, 20), commit_step(folder, 40)
    assert read_view(folder).find("20") == read_view(folder).find(str(first)) == first
    assert read_view(folder).find("latest") == second
    with pytest.raises(NotFound, match="there are steps 40, 20"):
        read_view(folder).find("30")


def test_a_zombies_late_commit_is_no_checkpoint_of_the_run(folder: Store, tmp_path: Path) -> None:
    commit_step(folder, 10)
    go_on_from(folder, 10, epoch=2)
    late = commit_step(folder, 30)
    ours = commit_step(folder, 20, epoch=2)
    assert committed_steps(folder) == [20, 10]
    assert read_view(folder).find("latest") == ours
    found = newest_valid(folder, read_view(folder), tmp_path / "scratch")
    assert found is not None and (found.name, list(found.damaged)) == (ours, [])
    assert prune(folder, read_view(folder), 0, [], FreeLease(folder)) == [CheckpointName(10, 1)]
    assert read_manifest(folder, late).step == 30


@pytest.mark.parametrize(
    "wrong",
    [
        {"files": {"model.safetensors": {"size": 10**12, "sha256": "0" * 64}}},
        {"files": {"model.safetensors": {"size": -1, "sha256": "0" * 64}}},
        {"files": {f"f{n}": {"size": 1, "sha256": "0" * 64} for n in range(1_001)}},
        {"files": {}},
        {"train_loss": float("nan")},
        {"step": "20"},
        {"created_at": "x" * 10**5},
    ],
    ids=lambda wrong: repr(wrong)[:60],
)
def test_a_manifest_that_cannot_be_is_damage(wrong: dict[str, Any], folder: Store) -> None:
    name = commit_step(folder, 20)
    manifest = read_manifest(folder, name).model_dump() | wrong
    folder.put(name.key(MANIFEST), [json.dumps(manifest).encode()])
    with pytest.raises(Damaged, match=name.key(MANIFEST)):
        read_manifest(folder, name)


def test_a_pointer_that_is_no_name_is_a_trace_and_is_replaced(folder: Store) -> None:
    folder.put(LATEST, [b"x" * (20 << 20)])
    assert read_latest(folder) not in (None, "")
    name = commit_step(folder, 20)
    assert read_latest(folder) == str(name)
