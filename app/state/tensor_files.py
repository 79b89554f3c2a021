"""Tensor files: written from the tensors' own memory, and read one tensor at a time.

The format is https://github.com/huggingface/safetensors#format. Its library is not used here,
because it maps the file into memory: if a mapped file is cut, or its volume goes away, the process
is killed by SIGBUS.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, RootModel, ValidationError, model_validator
from torch import Tensor

from app.errors import Damaged, IncompatibleRun
from app.stores.contract import Data

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_METADATA = "__metadata__"
_LONGEST_HEADER = 16 * 2**20  # bytes; that of the 135M model has 30 thousand

_Count = Annotated[int, Field(ge=0, lt=2**63)]


class TensorEntry(BaseModel):
    """What the header says of one tensor; offsets in bytes, from the end of the header."""

    dtype: str
    shape: tuple[_Count, ...]
    data_offsets: tuple[_Count, _Count]


class _Header(RootModel[dict[str, TensorEntry]]):
    @model_validator(mode="before")
    @classmethod
    def _without_metadata(cls, header: Any) -> Any:
        if isinstance(header, dict):
            return {name: entry for name, entry in header.items() if name != _METADATA}
        return header


def tensor_file(tensors: Mapping[str, Tensor]) -> Data:
    """The content of a file: a header, and then the tensors' own memory, which is not copied."""
    header: dict[str, Any] = {_METADATA: {"format": "pt"}}
    data: list[bytes | memoryview] = []
    offset = 0
    for name, tensor in sorted(tensors.items()):
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
        data.append(_bytes_of(tensor.contiguous()))
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return [len(encoded).to_bytes(8, "little") + encoded, *data]


def read_shapes(path: Path) -> dict[str, torch.Size]:
    """Shapes by name, from the header alone, so that tensors of another model are never read.

    Raises Damaged if the file is missing, cut or of another format, and IncompatibleRun if it
    holds tensors of a type that cannot be read.
    """
    with _opened(path) as file:
        return {name: torch.Size(entry.shape) for name, entry in _read_header(file, path)[1]}


def check_float32(path: Path) -> None:
    """Raises IncompatibleRun unless all tensors have this type, and what `read_shapes` raises."""
    with _opened(path) as file:
        for name, entry in _read_header(file, path)[1]:
            if _DTYPES[entry.dtype] != torch.float32:
                raise IncompatibleRun(f"{path.name} holds {name} as {entry.dtype}, not as F32")


def read_tensors(path: Path, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) for these names, in the order of the file. Each is read when it is asked for.

    Raises as `read_shapes` does.
    """
    wanted = set(names)
    with _opened(path) as file:
        start, entries = _read_header(file, path)
        for name, entry in entries:
            if name in wanted:
                tensor = torch.empty(entry.shape, dtype=_DTYPES[entry.dtype])
                file.seek(start + entry.data_offsets[0])
                if file.readinto(_bytes_of(tensor)) != tensor.nbytes:
                    raise Damaged(f"{path.name} ends within {name}")
                yield name, tensor


def _opened(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise Damaged(f"{path.name} is missing") from error


def _read_header(file: BufferedReader, path: Path) -> tuple[int, list[tuple[str, TensorEntry]]]:
    """Where the data begin, and the entries in the order of their data."""
    length = int.from_bytes(file.read(8), "little")
    if length > _LONGEST_HEADER:
        raise Damaged(f"{path.name} is not a safetensors file: a header of {length} bytes")
    try:
        entries = _Header.model_validate_json(file.read(length)).root
    except ValidationError as error:
        what = error.errors()[0]["msg"]
        raise Damaged(f"{path.name} is not a readable safetensors file: {what}") from error
    start = 8 + length
    room = path.stat().st_size - start
    for name, entry in entries.items():
        begin, end = entry.data_offsets
        if entry.dtype not in _DTYPES:
            raise IncompatibleRun(
                f"{path.name} holds {name} as {entry.dtype}; {', '.join(_DTYPES)} can be read"
            )
        if end - begin != math.prod(entry.shape) * _DTYPES[entry.dtype].itemsize:
            raise Damaged(f"{path.name}: {name} has {end - begin} bytes, its shape has others")
        if end > room:
            raise Damaged(f"{path.name} ends before {name} does")
    return start, sorted(entries.items(), key=lambda item: item[1].data_offsets)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the host."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)
