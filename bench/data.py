"""Batches of tokens from prepared shards, from `datasets` streaming, and from litdata.

    python -m bench.data --folder /tmp/bench-data --json docs/benchmarks/data.json

Every number is taken in a process of its own: tokens per second over the first steps of a
run, seconds from opening the data to the first batch of a late step, and the process's peak
memory. The contenders take turns, so that what else the machine does meets all of them.
Needs requirements.txt and `litdata`; without litdata that row is left out. Imports are not
counted, and making the shards is not either: `datasets` tokenizes and packs on the fly.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SEQ_LEN = 256
BATCH_SIZE = 8
STEPS = 100  # of which the speed is measured
RESUME_STEP = 500


def builtin_tokenizer(folder: Path) -> Any:
    """As in the image, where the tokenizer lies ready."""
    from app.tokenizer import build_builtin_tokenizer

    return build_builtin_tokenizer(folder / "tokenizer")


def ours_prepare(folder: Path) -> None:
    prepared(folder)


def ours_open(folder: Path, step: int) -> Iterator[Any]:
    """As a start of the job: a shard is compared with its SHA-256 when it is first read."""
    from app.corpus import Corpus
    from app.loader import BatchGeometry, training_loader
    from app.preemption import StopRequest
    from app.token_progress import TokenProgress

    corpus = Corpus(prepared(folder), TokenProgress(), StopRequest(), seed=1, seq_len=SEQ_LEN)
    geometry = BatchGeometry(BATCH_SIZE, BATCH_SIZE, SEQ_LEN)
    return iter(
        training_loader(
            corpus.train,
            corpus.sequences,
            geometry,
            step,
            10**9,
            num_workers=0,
            pin_memory=False,
        )
    )


def prepared(folder: Path) -> Any:
    """All of the corpus as tokens; found where they are there."""
    from app.preparation import Preparation, TokenNeed
    from app.sections import DataSettings
    from app.sources import pin_source

    source = pin_source(DataSettings(dataset=str(folder / "corpus.jsonl"), data_dir=folder))
    tokenizer = builtin_tokenizer(folder)
    made = Preparation(source, tokenizer, TokenNeed())
    made.run()
    return made


def datasets_loader(folder: Path) -> Any:
    """Read, shuffle in a buffer, tokenize and pack while training, as the documentation shows."""
    import numpy as np
    import torch
    from datasets import load_dataset
    from torch.utils.data import DataLoader

    from app.tokenizer import TextEncoder

    files = builtin_tokenizer(folder)
    encoder = TextEncoder(files)
    rest = np.zeros(0, dtype=np.int64)

    def pack(rows: dict[str, list[str]]) -> dict[str, list[Any]]:
        nonlocal rest
        end = np.array([files.eos_token_id])
        encoded = encoder.encode_batch(rows["text"])
        rest = np.concatenate([rest, *(part for ids in encoded for part in (ids, end))])
        blocks = (len(rest) - 1) // SEQ_LEN
        cut = [rest[i * SEQ_LEN : (i + 1) * SEQ_LEN + 1] for i in range(blocks)]
        rest = rest[blocks * SEQ_LEN :]
        return {"tokens": cut}

    stream = load_dataset(
        "json", data_files=str(folder / "corpus.jsonl"), split="train", streaming=True
    )
    packed = stream.shuffle(seed=1, buffer_size=100).map(
        pack, batched=True, batch_size=16, remove_columns=["text"]
    )
    return DataLoader(
        packed.with_format("numpy"),
        batch_size=BATCH_SIZE,
        collate_fn=lambda rows: torch.stack([torch.as_tensor(row["tokens"]) for row in rows]),
    )


def datasets_open(folder: Path, step: int) -> Iterator[Any]:
    """Resumes by going through what was shown: the rest of a packed document is in no state."""
    batches = iter(datasets_loader(folder))
    for _ in range(step):
        next(batches)
    return batches


def litdata_prepare(folder: Path) -> None:
    """The same tokens as ours, in litdata's chunks."""
    from litdata import TokensLoader, optimize

    (tokens,) = (folder / "tokens").iterdir()
    optimize(
        fn=litdata_tokens,
        inputs=[str(path) for path in sorted(tokens.glob("train-*.bin"))],
        output_dir=str(folder / "litdata"),
        num_workers=1,
        chunk_size=(SEQ_LEN + 1) * 8192,
        item_loader=TokensLoader(block_size=SEQ_LEN + 1),
    )


def litdata_tokens(path: str) -> Iterator[Any]:
    import numpy as np
    import torch

    yield torch.from_numpy(np.fromfile(path, dtype="<u2").astype("int64"))


def litdata_open(folder: Path, step: int) -> Iterator[Any]:
    """Resumes from the state that its own loader gave at that step."""
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

    dataset = StreamingDataset(
        str(folder / "litdata"),
        item_loader=TokensLoader(block_size=SEQ_LEN + 1),
        shuffle=True,
        drop_last=True,
        seed=1,
    )
    loader = StreamingDataLoader(dataset, batch_size=BATCH_SIZE, num_workers=0)
    if step:
        loader.load_state_dict(json.loads((folder / "litdata-state.json").read_text()))
    return iter(loader)


def litdata_save_state(folder: Path) -> None:
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

    dataset = StreamingDataset(
        str(folder / "litdata"),
        item_loader=TokensLoader(block_size=SEQ_LEN + 1),
        shuffle=True,
        drop_last=True,
        seed=1,
    )
    loader = StreamingDataLoader(dataset, batch_size=BATCH_SIZE, num_workers=0)
    for number, _ in enumerate(loader, start=1):
        if number == RESUME_STEP:
            (folder / "litdata-state.json").write_text(json.dumps(loader.state_dict()))
            return


OPEN: dict[str, Callable[[Path, int], Iterator[Any]]] = {
    "ours": ours_open,
    "datasets": datasets_open,
    "litdata": litdata_open,
}
PREPARE: dict[str, list[Callable[[Path], None]]] = {
    "ours": [ours_prepare],
    "datasets": [],
    "litdata": [litdata_prepare, litdata_save_state],
}
IMPORTS = {"ours": "app.loader", "datasets": "datasets", "litdata": "litdata"}


def write_corpus(folder: Path) -> None:
    from app.builtin import builtin_documents

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "corpus.jsonl"
    if not path.exists():
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in builtin_documents()))


def measure(name: str, what: str, folder: Path) -> dict[str, float]:
    """In this process: `speed` in tokens per second or `resume` in seconds, and peak memory."""
    __import__("torch")
    __import__(IMPORTS[name])
    started = time.perf_counter()
    if what == "speed":
        batches = OPEN[name](folder, 0)
        next(batches)  # what is opened lazily is no part of the speed
        started = time.perf_counter()
        for _ in range(STEPS):
            assert next(batches).shape == (BATCH_SIZE, SEQ_LEN + 1)
        value = STEPS * BATCH_SIZE * SEQ_LEN / (time.perf_counter() - started)
    else:
        next(OPEN[name](folder, RESUME_STEP))
        value = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"value": value, "peak_mib": peak}


def in_its_own_process(arguments: list[str]) -> dict[str, float]:
    result = subprocess.run(
        [sys.executable, "-m", "bench.data", *arguments],
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


def compare(names: list[str], folder: Path, repeats: int) -> dict[str, Any]:
    runs: dict[str, dict[str, list[float]]] = {
        name: {"speed": [], "resume": [], "peak_mib": []} for name in names
    }
    for repeat in range(repeats):
        turn = names if repeat % 2 == 0 else names[::-1]
        for what in ("speed", "resume"):
            for name in turn:
                found = in_its_own_process(["--measure", name, what, "--folder", str(folder)])
                runs[name][what].append(found["value"])
                runs[name]["peak_mib"].append(found["peak_mib"])
                print(f"{name} {what}: {found['value']:,.2f}, {found['peak_mib']:.0f} MiB")
    medians = {
        name: {what: statistics.median(values) for what, values in measured.items()}
        for name, measured in runs.items()
    }
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": os.getloadavg()[0],
        "versions": versions(),
        "seq_len": SEQ_LEN,
        "batch_size": BATCH_SIZE,
        "steps": STEPS,
        "resume_step": RESUME_STEP,
        "corpus_bytes": (folder / "corpus.jsonl").stat().st_size,
        "repeats": repeats,
        "runs": runs,
        "medians": medians,
    }


def table(result: dict[str, Any]) -> str:
    """Medians, and in brackets how many times ours."""
    ours = result["medians"]["ours"]
    lines = [
        f"| | tokens/s | first batch of step {result['resume_step']} | peak memory |",
        "|---|---|---|---|",
    ]
    for name, row in result["medians"].items():
        cells = [
            f"{row['speed']:,.0f} (× {row['speed'] / ours['speed']:.2g})",
            f"{row['resume']:.2f} s (× {row['resume'] / ours['resume']:.2g})",
            f"{row['peak_mib']:,.0f} MiB (× {row['peak_mib'] / ours['peak_mib']:.2g})",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=2, metavar=("NAME", "WHAT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        name, what = arguments.measure
        print(json.dumps(measure(name, what, arguments.folder)))
        return
    names = [name for name in OPEN if versions().get(name) != "not installed"]
    write_corpus(arguments.folder)
    for name in names:
        for step in PREPARE[name]:
            if step is not litdata_prepare or not (arguments.folder / "litdata").exists():
                step(arguments.folder)
    result = compare(names, arguments.folder, arguments.repeats)
    print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
