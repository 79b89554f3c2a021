"""Small files of a corpus, in each kind that DATASET can name."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = ["first text", "", "second\ntext", "drítter – text 日本"]


def jsonl(rows: Iterable[object], column: str = "text") -> bytes:
    return b"".join(json.dumps({"id": 1, column: row}).encode() + b"\n" for row in rows)


def zst(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


def write_zst(path: Path, data: bytes) -> None:
    path.write_bytes(zst(data))


def write_rows(path: Path, rows: list[str]) -> Path:
    """Write `rows` in the kind of file that the name of `path` tells."""
    if path.name.endswith(".parquet"):
        pq.write_table(pa.table({"id": [1] * len(rows), "text": rows}), path)
    elif path.name.endswith(".jsonl"):
        path.write_bytes(jsonl(rows))
    elif path.name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress(jsonl(rows)))
    else:
        write_zst(path, jsonl(rows))
    return path
