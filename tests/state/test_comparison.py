"""What differs between two directories with weights."""

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.errors import Damaged, NotFound
from app.state.comparison import compare_tensors, describe
from app.state.progress import STATE_FILE
from app.state.tensor_files import tensor_file
from tests.support.repository import ROOT
from tests.support.training_state import joined, progress


def folder(place: Path, tensors: Mapping[str, Tensor], file: str = "model.safetensors") -> Path:
    place.mkdir(exist_ok=True)
    (place / file).write_bytes(joined(tensor_file(tensors)))
    return place


def test_the_change_is_relative_to_the_first_and_the_largest_comes_first(tmp_path: Path) -> None:
    first = {"a": torch.tensor([[3.0, 4.0]]), "b": torch.full((3,), 2.0), "c": torch.ones(5)}
    second = {"a": torch.tensor([[3.0, 3.0]]), "b": torch.full((3,), -2.0), "c": torch.ones(5)}
    found = compare_tensors(folder(tmp_path / "1", first), folder(tmp_path / "2", second))
    assert [(c.name, c.shape, c.relative, c.largest) for c in found.changes] == [
        ("b", (3,), 2.0, 4.0),
        ("a", (1, 2), pytest.approx(0.2), 1.0),
        ("c", (5,), 0.0, 0.0),
    ]
    assert found.equal == 1
    assert found.relative == pytest.approx(math.sqrt((48 + 1) / (12 + 25 + 5)))
    assert (found.only_first, found.only_second, found.reshaped) == ({}, {}, {})


def test_what_only_one_of_them_has_or_has_in_another_shape_is_told(tmp_path: Path) -> None:
    first = {"a": torch.ones(2, 3), "b": torch.ones(4), "same": torch.ones(1)}
    second = {"a": torch.ones(3, 2), "new": torch.ones(5), "same": torch.zeros(1)}
    found = compare_tensors(folder(tmp_path / "1", first), folder(tmp_path / "2", second))
    assert [change.name for change in found.changes] == ["same"]
    assert found.only_first == {"b": (4,)} and found.only_second == {"new": (5,)}
    assert found.reshaped == {"a": ((2, 3), (3, 2))}


def test_a_change_from_nothing_is_infinite_and_one_that_is_no_number_comes_first(
    tmp_path: Path,
) -> None:
    first = {"zero": torch.zeros(2), "nan": torch.ones(2), "still": torch.zeros(2)}
    second = {"zero": torch.ones(2), "nan": torch.tensor([1.0, math.nan]), "still": torch.zeros(2)}
    found = compare_tensors(folder(tmp_path / "1", first), folder(tmp_path / "2", second))
    assert [change.name for change in found.changes] == ["nan", "zero", "still"]
    assert math.isnan(found.changes[0].relative) and found.changes[1].relative == math.inf
    assert found.equal == 1 and math.isnan(found.relative)


def test_numbers_of_two_types_and_in_several_files_are_compared(tmp_path: Path) -> None:
    first = folder(tmp_path / "1", {"a": torch.tensor([1.0, 2.0]), "b": torch.ones(2)})
    halved = {"a": torch.tensor([1.0, 2.0]).bfloat16()}
    second = folder(tmp_path / "2", halved, "model-1.safetensors")
    folder(second, {"b": torch.zeros(2)}, "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (second / "model.safetensors.index.json").write_text(json.dumps(index))
    for one, other in ((first, second), (second, first)):
        changes = {c.name: c.largest for c in compare_tensors(one, other).changes}
        assert changes == {"a": 0.0, "b": 1.0}


def test_the_memory_is_that_of_a_tensor_and_not_of_a_model(tmp_path: Path) -> None:
    """Two models of 160 MB, of 40 tensors each, in a process that is measured by the kernel."""
    tensors = {f"t{number}": torch.zeros(1 << 20) for number in range(40)}
    first, second = folder(tmp_path / "1", tensors), folder(tmp_path / "2", tensors)
    measured = (
        "import resource, sys; from pathlib import Path;"
        "from app.state.comparison import compare_tensors;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024;"
        "before = peak();"
        "assert compare_tensors(Path(sys.argv[1]), Path(sys.argv[2])).equal == 40;"
        "print(peak() - before)"
    )
    command = [sys.executable, "-c", measured, str(first), str(second)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert int(done.stdout) < 80


@pytest.mark.parametrize("harm", ["cut", "missing", "no header"])
def test_an_unreadable_file_is_damage_or_not_there(harm: str, tmp_path: Path) -> None:
    good = folder(tmp_path / "1", {"a": torch.ones(9)})
    path = folder(tmp_path / "2", {"a": torch.ones(9)}) / "model.safetensors"
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if harm == "cut" else b"x" * 99)
    error = NotFound if harm == "missing" else Damaged
    for pair in ((good, path.parent), (path.parent, good)):
        with pytest.raises(error, match=r"model\.safetensors"):
            compare_tensors(*pair)


def test_a_directory_says_where_it_stands_and_what_it_was_trained_with(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_text(progress(7).model_dump_json())
    (tmp_path / "config.json").write_text('{"hidden_size": 64}')
    said = describe(tmp_path)
    assert said.facts["step"] == 7 and said.facts["tokens"] == 70
    assert said.settings["config.json: hidden_size"] == 64
    assert said.settings["LEARNING_RATE"] == progress(7).optimizer["learning_rate"]
    assert "torch" in said.versions


def test_a_directory_of_others_says_only_its_shape(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 64}')
    said = describe(tmp_path)
    assert (said.facts, said.versions) == ({}, {})
    assert said.settings == {"config.json: hidden_size": 64}
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(Damaged, match=r"config.json is not a JSON object"):
        describe(tmp_path)
