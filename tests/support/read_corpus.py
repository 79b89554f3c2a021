"""How fast each kind of file is read, and how much memory it takes: not a test, a measurement.

    python -m tests.support.read_corpus FOLDER MEGABYTES [KIND ...]

Makes a corpus of so many megabytes of text of each kind in FOLDER, reads each in a process of
its own, and prints CPU time and by how much the resident memory grew at its peak.
"""

import gzip
import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KINDS = ("a.txt", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet")


def texts(megabytes: int) -> Iterator[str]:
    """Documents of some hundred bytes to some 100 kB: a few megabytes of them, over and over."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyzéü日"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(5000)]
    sizes = [min(20_000, int(draw.paretovariate(1.2) * 60)) for _ in range(4000)]
    some = [" ".join(draw.choices(words, k=size)).replace(" a", "\n") for size in sizes]
    left = megabytes * 1_000_000
    for text in itertools.cycle(some):
        yield text
        left -= len(text.encode())
        if left <= 0:
            return


def make(path: Path, megabytes: int) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    if path.suffix == ".parquet":
        schema = pa.schema({"text": pa.string()})
        with ParquetWriter(path, schema, compression="zstd") as writer:
            rows = list(texts(megabytes))
            writer.write_table(pa.table({"text": rows}, schema=schema), row_group_size=10**9)
        return
    stream: Any
    if path.suffix == ".gz":
        stream = gzip.open(path, "wb", 1)  # noqa: SIM115 - closed below
    elif path.suffix == ".zst":
        stream = pa.output_stream(str(path), compression="zstd")
    else:
        stream = path.open("wb")
    with stream:
        for text in texts(megabytes):
            row = text if path.suffix == ".txt" else json.dumps({"text": text}, ensure_ascii=False)
            stream.write(f"{row}\n".encode())


def read(path: Path) -> None:
    from app.data.sources import pin_source
    from app.settings.variables import DataSettings

    warm = path.with_name("warm." + path.name.partition(".")[2])
    make(warm, 1)
    for _ in pin_source(DataSettings(dataset=str(warm))).pieces():
        pass
    source = pin_source(DataSettings(dataset=str(path)))
    before, started = peak_memory(), time.process_time()
    size = sum(len(piece.text.encode()) for piece in source.pieces())
    seconds = time.process_time() - started
    print(
        f"{path.name}: {size / 1e6:.0f} MB of text, {size / 1e6 / seconds:.0f} MB/s of CPU time, "
        f"peak memory grew by {peak_memory() - before:.0f} MB"
    )


def peak_memory() -> float:
    """Largest resident size of this process, in MB; getrusage would count the parent's too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def main(folder: Path, megabytes: int, kinds: list[str]) -> None:
    for name in kinds or KINDS:
        make(folder / name, megabytes)
        command = [sys.executable, "-m", "tests.support.read_corpus", "--read", str(folder / name)]
        subprocess.run(command, check=True)
        (folder / name).unlink()


if __name__ == "__main__":
    if sys.argv[1] == "--read":
        read(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
