"""The state's files: complete, exact, and what transformers reads."""

import contextlib
import dataclasses
from pathlib import Path

import pytest
import torch

from app.errors import Damaged, IncompatibleRun
from app.model.huggingface import MODEL_FILE
from app.model.smollm2 import SmolLM2
from app.state.identity import RunRecord
from app.state.snapshot import (
    Expected,
    capture,
    checkpoint_bytes,
    huggingface_files,
    restore,
)
from app.training.optimizer import build_optimizer
from tests.support import needs
from tests.support.stored_run import IDENTITY
from tests.support.training_state import (
    SMALL,
    joined,
    optimizer_settings,
    progress,
    trained,
    write,
)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_what_is_restored_equals_what_was_captured_bit_for_bit(name: str, tmp_path: Path) -> None:
    model, optimizer = trained(optimizer_name=name)
    write(capture(model, optimizer, progress(2)), tmp_path)
    other = SmolLM2(SMALL)
    other_optimizer = build_optimizer(other, optimizer_settings(name), torch.device("cpu"))
    assert restore(tmp_path, other, other_optimizer).step == 2
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert optimizer.state[a].keys() == other_optimizer.state[b].keys()
        for key, value in optimizer.state[a].items():
            assert torch.equal(value, other_optimizer.state[b][key]), key


@needs.proc
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_what_is_restored_needs_its_files_no_more(name: str, tmp_path: Path) -> None:
    model, optimizer = trained(optimizer_name=name)
    write(capture(model, optimizer, progress(2)), tmp_path)
    other_model, other_optimizer = trained(0, name)
    restore(tmp_path, other_model, other_optimizer)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text(), "a cut file is a SIGBUS"
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    for a, b in zip(model.parameters(), other_model.parameters(), strict=True):
        for key, value in optimizer.state[a].items():
            assert torch.equal(value, other_optimizer.state[b][key]), key


@pytest.mark.parametrize(("before", "now"), [("adamw", "muon"), ("muon", "adamw")])
def test_moments_of_another_optimizer_are_refused(before: str, now: str, tmp_path: Path) -> None:
    model, optimizer = trained(optimizer_name=before)
    write(capture(model, optimizer, progress(2)), tmp_path)
    other_model, other_optimizer = trained(0, now)
    with pytest.raises(IncompatibleRun, match="OPTIMIZER as the run has it needs"):
        restore(tmp_path, other_model, other_optimizer)


@pytest.mark.parametrize(("made_with", "whole"), [("muon", True), ("adamw", False)])
def test_a_checkpoint_of_a_run_has_the_moments_of_its_optimizer(
    made_with: str, whole: bool, tmp_path: Path
) -> None:
    identity = {"shape": dataclasses.asdict(SMALL), "optimizer": "muon"}
    record = RunRecord(
        run_name="small",
        created_at="",
        identity=IDENTITY.model_copy(update=identity),
        total_steps=2,
    )
    model, optimizer = trained(optimizer_name=made_with)
    tokens = 2 * IDENTITY.seq_len * IDENTITY.global_batch_size
    settings = {"optimizer": "muon", "learning_rate": 0.1}
    state = progress(2).model_copy(update={"run": record, "tokens": tokens, "optimizer": settings})
    write(capture(model, optimizer, state), tmp_path)
    refused = pytest.raises(Damaged, match="not those of its run: optimizer")
    with contextlib.nullcontext() if whole else refused:
        Expected(record).check(2, tmp_path)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_expected_size_of_a_checkpoint_is_a_little_more_than_its_tensors(name: str) -> None:
    model, optimizer = trained(optimizer_name=name)
    files = capture(model, optimizer, progress(2)).files({})
    size = sum(memoryview(part).nbytes for data in files.values() for part in data)
    assert size < checkpoint_bytes(SMALL, name) < size + 4_000_000


def test_a_snapshot_does_not_change_when_training_goes_on() -> None:
    model, optimizer = trained()
    snapshot = capture(model, optimizer, progress(2))
    before = joined(snapshot.files({})[MODEL_FILE])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert joined(snapshot.files({})[MODEL_FILE]) == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("room", [0.0, torch.inf])
def test_a_snapshot_on_a_gpu_is_that_of_its_moment(room: float) -> None:
    model, optimizer = trained()
    before = joined(capture(model, optimizer, progress(2)).files({})[MODEL_FILE])
    model.to("cuda")
    snapshot = capture(model, optimizer, progress(2), room=room)
    assert (snapshot.made is None) == (room > 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    snapshot.bring_to_host()
    assert joined(snapshot.files({})[MODEL_FILE]) == before


def test_a_truncated_file_is_damaged(tmp_path: Path) -> None:
    model, optimizer = trained()
    write(capture(model, optimizer, progress(2)), tmp_path)
    path = tmp_path / MODEL_FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Damaged, match=r"model\.safetensors"):
        restore(tmp_path, model, optimizer)


def test_config_json_carries_rope_theta_into_transformers(tmp_path: Path) -> None:
    from transformers import AutoConfig

    config = dataclasses.replace(SMALL, rope_theta=54_321.0, rms_norm_eps=3e-5)
    (tmp_path / "tokenizer").mkdir()
    for name, content in huggingface_files(config, tmp_path / "tokenizer", 0, 0).items():
        (tmp_path / name).write_bytes(content)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.rope_parameters["rope_theta"] == 54_321.0
    assert loaded.rms_norm_eps == 3e-5
    assert loaded.tie_word_embeddings is True
