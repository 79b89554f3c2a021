"""Files of tensors: what the library reads is what we write, and nothing damaged is believed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from app.errors import Damaged, IncompatibleRun
from app.state.tensor_files import read_shapes, read_tensors, tensor_file
from tests.support import needs

TENSORS = {
    "matrix": torch.arange(15.0).reshape(3, 5),
    "scalar": torch.tensor(2.5),
    "half": torch.arange(7.0).bfloat16(),
    "transposed": torch.arange(24.0).reshape(4, 6).T,
    "empty": torch.zeros(0, 3),
}


def written() -> bytes:
    return b"".join(bytes(part) for part in tensor_file(TENSORS))


def read(path: Path) -> dict[str, torch.Tensor]:
    return dict(read_tensors(path, read_shapes(path)))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_library_reads_what_we_write() -> None:
    assert same(load(written()), TENSORS)


@pytest.mark.parametrize("by", ["us", "the library"])
def test_we_read_what_is_written(by: str, tmp_path: Path) -> None:
    contiguous = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    path = tmp_path / "file"
    path.write_bytes(written() if by == "us" else save(contiguous, {"author": "somebody"}))
    assert read_shapes(path) == {name: tensor.shape for name, tensor in TENSORS.items()}
    assert same(read(path), TENSORS)
    assert [name for name, _ in read_tensors(path, ["matrix", "half"])] in (
        ["matrix", "half"],
        ["half", "matrix"],
    )


@needs.proc
def test_the_file_is_not_mapped(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(written())
    read_shapes(path)
    kept = []
    for _, tensor in read_tensors(path, TENSORS):
        kept.append(tensor)
        assert str(path) not in Path("/proc/self/maps").read_text(), "a cut file is a SIGBUS"


def test_a_file_cut_anywhere_is_damaged(tmp_path: Path) -> None:
    path, content = tmp_path / "file", written()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(Damaged, match=r"^file "):
            read(path)


def test_a_file_cut_between_two_looks_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(save({"a": torch.zeros(10_000), "b": torch.zeros(10_000)}))
    tensors = read_tensors(path, read_shapes(path))
    next(tensors)
    with path.open("r+b") as file:
        file.truncate(60_000)
    with pytest.raises(Damaged, match="file ends within"):
        next(tensors)


def header(**entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff" * 64, "a header of 18446744073709551615 bytes"),
        (b"\x05" + bytes(7) + b"[[[[[", "not a readable safetensors file"),
        ((2 * 10**6).to_bytes(8, "little") + b"[" * 2 * 10**6, "not a readable"),
        (header(a={"dtype": "F32"}), "not a readable"),
        (header(a={"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}), "not a readable"),
        (header(a={"dtype": "F32", "shape": [2**62], "data_offsets": [0, 4]}), "4 bytes"),
        (header(a={"dtype": "F32", "shape": [2**61], "data_offsets": [0, 2**62 * 2 - 1]}), "shape"),
        (header(a={"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}), "ends before"),
        (header(a={"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}), "-4 bytes"),
    ],
)
def test_a_header_that_lies_is_damaged_and_fills_no_memory(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(Damaged, match=reason):
        read_shapes(path)


def test_a_type_that_is_not_known_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(save({"counts": torch.arange(3)}))
    with pytest.raises(IncompatibleRun, match="file holds counts as I64; F32, BF16, F16 can be"):
        read_shapes(path)


def test_a_file_that_is_not_there_is_damage_of_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="file is missing"):
        read_shapes(tmp_path / "file")
