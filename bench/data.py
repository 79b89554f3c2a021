"""Batches of tokens from prepared shards, from `datasets` streaming, and from litdata.

    python -m bench.data --folder /tmp/bench-data --json docs/benchmarks/data.json

Every number is taken in a process of its own: tokens per second over the first steps of a
run, seconds from opening the data to the first batch of step 0 and of a late step, and the
process's peak memory. The contenders take turns, so that what else the machine does meets all
of them. Needs Linux, requirements.txt and `litdata`; without litdata that row is left out.
Imports are not counted, and making the shards is not either: `datasets` tokenizes and packs on
the fly.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.text import write_text

ROOT = Path(__file__).parent.parent
TEXT_BYTES = 250_000_000  # some 54 million tokens: step 100,000 of the small batches is in them


@dataclass(frozen=True)
class Case:
    """Micro-batches of `batch_size` sequences of `seq_len` tokens, each a step; the speed is
    measured over `steps`."""

    batch_size: int
    seq_len: int
    steps: int
    resume_step: int

    @property
    def tokens(self) -> int:
        return self.batch_size * self.seq_len


CASES = {"small": Case(2, 256, 2_000, 100_000), "large": Case(16, 2_048, 100, 500)}


def builtin_tokenizer(folder: Path) -> Any:
    """As in the image, where the tokenizer lies ready."""
    from app.data.tokenizer import build_builtin_tokenizer

    return build_builtin_tokenizer(folder / "tokenizer", 49_152)


def ours_prepare(folder: Path, case: Case) -> None:
    prepared(folder)


def ours_open(folder: Path, case: Case, step: int) -> Iterator[Any]:
    """As a start of the job: a shard is compared with its SHA-256 when it is first read."""
    from app.data.loader import training_loader
    from app.data.sample_order import BatchGeometry
    from app.data.token_progress import TokenProgress
    from app.data.token_stream import TokenStream

    stream = TokenStream(
        prepared(folder), TokenProgress(), lambda: False, seed=1, seq_len=case.seq_len
    )
    geometry = BatchGeometry(case.batch_size, case.batch_size, case.seq_len)
    return iter(
        training_loader(
            stream.train,
            stream.sequences,
            geometry,
            step,
            10**9,
            num_workers=0,
            pin_memory=False,
        )
    )


def prepared(folder: Path) -> Any:
    """All of the corpus as tokens; found where they are there."""
    from app.data.preparation import Preparation
    from app.data.sources import pin_source
    from app.data.token_need import TokenNeed
    from app.settings.variables import DataSettings

    source = pin_source(DataSettings(dataset=str(folder / "corpus.jsonl"), data_dir=folder))
    tokenizer = builtin_tokenizer(folder)
    made = Preparation(source, tokenizer, TokenNeed())
    made.run()
    return made


def datasets_loader(folder: Path, case: Case) -> Any:
    """Read, shuffle in a buffer, tokenize and pack while training, as the documentation shows."""
    import numpy as np
    import torch
    from datasets import load_dataset
    from torch.utils.data import DataLoader

    from app.data.tokenizer import TextEncoder

    files = builtin_tokenizer(folder)
    encoder = TextEncoder(files)
    rest = np.zeros(0, dtype=np.int64)

    def pack(rows: dict[str, list[str]]) -> dict[str, list[Any]]:
        nonlocal rest
        end = np.array([files.eos_token_id])
        encoded = encoder.encode_batch(rows["text"])
        rest = np.concatenate([rest, *(part for ids in encoded for part in (ids, end))])
        size = case.seq_len
        blocks = (len(rest) - 1) // size
        cut = [rest[i * size : (i + 1) * size + 1] for i in range(blocks)]
        rest = rest[blocks * size :]
        return {"tokens": cut}

    stream = load_dataset(
        "json", data_files=str(folder / "corpus.jsonl"), split="train", streaming=True
    )
    packed = stream.shuffle(seed=1, buffer_size=100).map(
        pack, batched=True, batch_size=16, remove_columns=["text"]
    )
    return DataLoader(
        packed.with_format("numpy"),
        batch_size=case.batch_size,
        collate_fn=lambda rows: torch.stack([torch.as_tensor(row["tokens"]) for row in rows]),
    )


def datasets_open(folder: Path, case: Case, step: int) -> Iterator[Any]:
    """Resumes by going through what was shown: the rest of a packed document is in no state."""
    batches = iter(datasets_loader(folder, case))
    for _ in range(step):
        next(batches)
    return batches


def litdata_prepare(folder: Path, case: Case) -> None:
    """The same tokens as ours, in litdata's chunks; found where they are there."""
    from litdata import TokensLoader, optimize

    if litdata_chunks(folder, case).exists():
        return
    (tokens,) = (folder / "tokens").iterdir()
    optimize(
        fn=litdata_tokens,
        inputs=[str(path) for path in sorted(tokens.glob("train-*.bin"))],
        output_dir=str(litdata_chunks(folder, case)),
        num_workers=1,
        chunk_size=(case.seq_len + 1) * (2**21 // case.seq_len),
        item_loader=TokensLoader(block_size=case.seq_len + 1),
    )


def litdata_chunks(folder: Path, case: Case) -> Path:
    return folder / f"litdata-{case.seq_len}"


def litdata_state(folder: Path, case: Case) -> Path:
    return folder / f"litdata-{case.seq_len}-step-{case.resume_step}.json"


def litdata_tokens(path: str) -> Iterator[Any]:
    import numpy as np
    import torch

    yield torch.from_numpy(np.fromfile(path, dtype="<u2").astype("int64"))


def litdata_loader(folder: Path, case: Case) -> Any:
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

    dataset = StreamingDataset(
        str(litdata_chunks(folder, case)),
        item_loader=TokensLoader(block_size=case.seq_len + 1),
        shuffle=True,
        drop_last=True,
        seed=1,
    )
    return StreamingDataLoader(dataset, batch_size=case.batch_size, num_workers=0)


def litdata_open(folder: Path, case: Case, step: int) -> Iterator[Any]:
    """Resumes from the state that its own loader gave at that step."""
    loader = litdata_loader(folder, case)
    if step:
        loader.load_state_dict(json.loads(litdata_state(folder, case).read_text()))
    return iter(loader)


def litdata_save_state(folder: Path, case: Case) -> None:
    loader = litdata_loader(folder, case)
    for number, _ in enumerate(loader, start=1):
        if number == case.resume_step:
            litdata_state(folder, case).write_text(json.dumps(loader.state_dict()))
            return


OPEN: dict[str, Callable[[Path, Case, int], Iterator[Any]]] = {
    "ours": ours_open,
    "datasets": datasets_open,
    "litdata": litdata_open,
}
PREPARE: dict[str, list[Callable[[Path, Case], None]]] = {
    "ours": [ours_prepare],
    "datasets": [],
    "litdata": [litdata_prepare, litdata_save_state],
}
IMPORTS = {"ours": "app.data.loader", "datasets": "datasets", "litdata": "litdata"}


def measure(name: str, what: str, folder: Path, case: Case) -> dict[str, float]:
    """In this process: seconds to the first batch of step 0 (`start`) and tokens per second
    after it (`speed`; `cpu_speed` per second of CPU time), or seconds to the first batch of the
    late step (`resume`); and the peak memory."""
    __import__("torch")
    __import__(IMPORTS[name])
    started = time.perf_counter()
    batches = OPEN[name](folder, case, 0 if what == "speed" else case.resume_step)
    next(batches)  # what is opened lazily is no part of the speed
    seconds = time.perf_counter() - started
    if what == "resume":
        return {"resume": seconds, "peak_mib": peak_mib()}
    started, cpu_started = time.perf_counter(), time.process_time()
    for _ in range(case.steps):
        assert next(batches).shape == (case.batch_size, case.seq_len + 1)
    tokens = case.steps * case.tokens
    return {
        "start": seconds,
        "speed": tokens / (time.perf_counter() - started),
        "cpu_speed": tokens / (time.process_time() - cpu_started),
        "peak_mib": peak_mib(),
    }


def peak_mib() -> float:
    """Not ru_maxrss: that counts from the size of the process that began this one."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def in_its_own_process(name: str, what: str, folder: Path, case: str) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.data", "--folder", str(folder)]
    result = subprocess.run(
        [*command, "--cases", case, "--measure", name, what],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return found


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "datasets", "litdata"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def compare(names: list[str], folder: Path, case: str, repeats: int, walks: int) -> dict[str, Any]:
    """`walks`: how often `datasets` goes through the text to the late step."""
    runs: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    load = []
    for repeat in range(repeats):
        turn = names if repeat % 2 == 0 else names[::-1]
        for what in ("speed", "resume"):
            for name in turn:
                if (name, what) == ("datasets", "resume") and repeat >= walks:
                    continue
                load.append(os.getloadavg()[0])
                found = in_its_own_process(name, what, folder, case)
                for key, value in found.items():
                    runs[name].setdefault(key, []).append(value)
                print(name, {key: round(value, 3) for key, value in found.items()}, flush=True)
    medians = {name: summary(measured) for name, measured in runs.items()}
    return {**asdict(CASES[case]), "load": load, "runs": runs, "medians": medians}


def summary(measured: dict[str, list[float]]) -> dict[str, float]:
    """Medians; of the peaks of memory the highest, since a resume takes more than a start."""
    medians = {what: statistics.median(values) for what, values in measured.items()}
    return {**medians, "peak_mib": max(measured["peak_mib"])}


def table(result: dict[str, Any]) -> str:
    """Medians, and in brackets how many times ours."""
    steps = f"first batch of step 0 | of step {result['resume_step']:,}"
    lines = [
        f"| {result['batch_size']} × {result['seq_len']:,} | tokens/s | per second of CPU time "
        f"| {steps} | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    ours = result["medians"]["ours"]
    columns = [
        ("speed", ",.0f", ""),
        ("cpu_speed", ",.0f", ""),
        ("start", ",.2f", " s"),
        ("resume", ",.2f", " s"),
        ("peak_mib", ",.0f", " MiB"),
    ]
    for name, row in result["medians"].items():
        cells = [
            f"{row[key]:{form}}{unit} (× {row[key] / ours[key]:,.3g})" if key in row else "–"
            for key, form, unit in columns
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--walks", type=int, default=1, help="resumes of `datasets`, minutes each")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=2, metavar=("NAME", "WHAT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.folder
    if arguments.measure:
        name, what = arguments.measure
        print(json.dumps(measure(name, what, folder, CASES[arguments.cases[0]])))
        return
    names = [name for name in OPEN if versions().get(name) != "not installed"]
    corpus = folder / "corpus.jsonl"
    write_text(corpus, TEXT_BYTES)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),
        "corpus_bytes": corpus.stat().st_size,
        "cases": {},
    }
    for case in arguments.cases:
        for name in names:
            for step in PREPARE[name]:
                step(folder, CASES[case])
        found = compare(names, folder, case, arguments.repeats, arguments.walks)
        print(table(found), flush=True)
        result["cases"][case] = found
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
