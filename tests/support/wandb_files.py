"""What W&B has written to its own files, read back: a run-….wandb file is a log of records.

The file has a header of 7 bytes, and blocks of 32 KiB, the first of them shorter by that header. A
record is one piece or several, each with a checksum, its length and which part it is; its content
is W&B's own message. W&B reads these files with a program of its own, which has no interface here.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_HEADER, _BLOCK, _PIECE = 7, 32_768, 7
_FULL, _LAST = 1, 4


@dataclass
class WandbFile:
    """Of one file: the run's id, settings, each row of the history, and the summary at its end."""

    id: str = ""
    name: str = ""
    project: str = ""
    resumes: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[tuple[str, str]] = field(default_factory=list)  # name, manifest as text
    exit_code: int | None = None
    preempting: bool = False

    def values(self, name: str) -> list[tuple[int, float]]:
        return [(int(row["_step"]), row[name]) for row in self.history if name in row]


def wandb_files(directory: Path) -> list[WandbFile]:
    return [read(path) for path in sorted(directory.rglob("*.wandb"))]


def read(path: Path) -> WandbFile:
    from wandb.proto.wandb_internal_pb2 import Record

    found = WandbFile()
    for content in _records(path.read_bytes()):
        record = Record.FromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.id, found.name = record.run.run_id, record.run.display_name
            found.project, found.resumes = record.run.project, record.run.resumed
            found.config |= _items(record.run.config.update)
        elif kind == "history":
            found.history.append(_items(record.history.item))
        elif kind == "summary":
            found.summary |= _items(record.summary.update)
        elif kind == "artifact":
            found.artifacts.append((record.artifact.name, str(record.artifact)))
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
        elif kind == "preempting":
            found.preempting = True
    return found


def _items(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[bytes]:
    place, parts = _HEADER, b""
    while place + _PIECE <= len(data):
        if (left := _BLOCK - place % _BLOCK) < _PIECE:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + _PIECE])
        parts += data[place + _PIECE : place + _PIECE + length]
        place += _PIECE + length
        if kind in (_FULL, _LAST):
            yield parts
            parts = b""
