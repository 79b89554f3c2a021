"""`checkpoints diff` as it is typed."""

import json
from pathlib import Path

import pytest

from tests.support.changed_checkpoint import change_state, change_tensors
from tests.support.quiet_stop import LONG_TEXT
from tests.support.train_command import Job, error_lines


@pytest.fixture
def trained(job: Job, tmp_path: Path) -> Path:
    """The checkpoints of a run of four steps, of which 2 and 4 were saved."""
    (tmp_path / "long.txt").write_text(LONG_TEXT)
    changes = {"DATASET": f"{tmp_path}/long.txt", "VAL_EVERY_STEPS": "2", "VAL_TOKENS": "256"}
    code, _, log = job(["train"], **changes)
    assert code == 0, log
    return tmp_path / "store" / "tiny" / "checkpoints"


def test_two_steps_of_a_run_differ_in_their_weights_alone(trained: Path, job: Job) -> None:
    code, said, _ = job(["checkpoints", "diff", "2", "latest", "--top", "2"])
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert code == 0
    assert lines[0] == "2 latest" and "step 2 4" in lines and "tokens 512 1024" in lines
    assert "settings that differ: none" in lines and "versions that differ: none" in lines
    at = lines.index("relative largest tensor")
    assert " in both: " in lines[at - 1] and "the relative change of all is " in lines[at - 1]
    assert float(lines[at + 1].split()[0]) >= float(lines[at + 2].split()[0]) > 0
    assert "more that differ: --top 0 shows all" in lines[at + 3]


def test_as_json_every_tensor_is_listed(trained: Path, job: Job) -> None:
    code, said, _ = job(["checkpoints", "diff", "2", "best", "--json"])
    found = json.loads(said)
    assert code == 0
    assert [side["step"] for side in found["checkpoints"]] == [2, 4]
    changes = [tensor["relative_change"] for tensor in found["tensors"]]
    assert changes == sorted(changes, reverse=True) and found["relative_change"] > 0
    assert "model.norm.weight" in [tensor["name"] for tensor in found["tensors"]]


def test_a_checkpoint_is_equal_to_itself_once_it_was_pulled(
    trained: Path, job: Job, tmp_path: Path
) -> None:
    pulled = str(tmp_path / "pulled")
    assert job(["checkpoints", "pull", "4", "--to", pulled])[0] == 0
    code, said, _ = job(["checkpoints", "diff", "4", pulled])
    assert code == 0 and " 0 differ" in said and "the relative change of all is 0" in said
    nowhere = f"file://{tmp_path}/no/store"
    assert job(["checkpoints", "diff", pulled, pulled], CHECKPOINT_URI=nowhere)[0] == 0


def test_other_settings_versions_and_tensors_are_told(
    trained: Path, job: Job, tmp_path: Path
) -> None:
    pulled = tmp_path / "pulled"
    assert job(["checkpoints", "pull", "4", "--to", str(pulled)])[0] == 0
    (pulled / "manifest.json").write_text('{"files": {}}')
    state = json.loads((pulled / "state.json").read_text())
    optimizer = {**state["optimizer"], "learning_rate": 0.125}
    change_state(pulled, optimizer=optimizer, versions={**state["versions"], "torch": "1.0"})
    change_tensors(pulled, "model.safetensors", lambda tensors: tensors.pop("model.norm.weight"))
    code, said, _ = job(["checkpoints", "diff", "4", str(pulled)])
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert code == 0
    assert any(line.startswith("LEARNING_RATE 0.0") and line.endswith(" 0.125") for line in lines)
    assert any(line.startswith("torch 2.") and line.endswith(" 1.0") for line in lines)
    assert any(line.startswith("only in the first: model.norm.weight [") for line in lines)
    (pulled / "state.json").unlink()
    said = job(["checkpoints", "diff", str(pulled), "4"])[1]
    assert f"{pulled} has no state.json" in said and "versions that differ" not in said


@pytest.mark.parametrize("harm", ["flipped", "missing"])
def test_a_damaged_checkpoint_is_told_and_not_compared(harm: str, trained: Path, job: Job) -> None:
    path = next(trained.glob("step-0000000002-*")) / "model.safetensors"
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    code, said, log = job(["checkpoints", "diff", "2", "4"])
    assert (code, said) == (78, "")
    assert "step-0000000002" in error_lines(log)[0] and "model.safetensors" in error_lines(log)[0]


@pytest.mark.parametrize(
    ("named", "says"),
    [("3", "holds no checkpoint '3'; there are steps 4, 2"), ("./no/folder", "is no folder here")],
)
def test_what_is_not_there_is_said(named: str, says: str, trained: Path, job: Job) -> None:
    code, said, log = job(["checkpoints", "diff", "4", named])
    assert (code, said) == (78, "") and says in error_lines(log)[0]
