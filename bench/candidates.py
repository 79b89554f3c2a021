"""One candidate of `bench.train`, in a process of its own; the last line printed is its result."""

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.model.smollm2 import SmolLM2
from app.run.clock import seconds_of_this_process
from app.settings.presets import PRESETS
from app.settings.variables import RunSettings
from bench.reference import llama
from bench.train import OURS, Result, Shape

NOT_INSTALLED = 3
LEARNING_RATE = 3e-4


def job_settings(shape: Shape, folder: Path, **more: Any) -> dict[str, str]:
    """Settings of the job: the learning rate and decay are those of `plain_loop`."""
    settings = {
        "model": shape.model,
        "device": shape.device,
        "precision": shape.precision,
        "compile": str(shape.compile).lower(),
        "seq_len": shape.seq_len,
        "batch_size": shape.micro_batch,
        "global_batch_size": shape.micro_batch,
        "learning_rate": LEARNING_RATE,
        "lr_schedule": "constant",
        "warmup_steps": 0,
        "total_steps": shape.steps + 1,
        "keep_top": 0,
        "data_dir": folder / "data",
        "checkpoint_uri": f"file://{folder}/checkpoints",
        "loggers": "none",
        **more,
    }
    return {name: str(value) for name, value in settings.items()}


def run_job(command: str, settings: Mapping[str, str]) -> None:
    """A command of the job, as a user gives it. Raises RuntimeError if it fails."""
    from app.cli.parser import main

    code = main([command, *(f"--{name}={value}" for name, value in settings.items())])
    if code != 0:
        raise RuntimeError(f"{command} ended with {code}")


def batches(shape: Shape, folder: Path) -> list[torch.Tensor]:
    """The token ids (B, T + 1) of each step, as the job itself sees them."""
    from app.cli.prepared_tokens import find_tokens
    from app.data.sample_order import corpus_order
    from app.settings.load import load_settings

    given = job_settings(shape, folder)
    run_job("prepare", given)
    settings = load_settings(given)
    prepared = find_tokens(settings)
    shards = prepared.open("train")
    order = corpus_order(
        shards.n_tokens,
        shape.seq_len,
        complete=prepared.index.complete,
        seed=settings.run.seed,
    )
    sequences = [
        order.sequence_at(n) * shape.seq_len for n in range((shape.steps + 1) * shape.micro_batch)
    ]
    rows = np.stack([shards.read(first, shape.seq_len + 1) for first in sequences])
    ids = torch.from_numpy(rows.astype(np.int64))
    return list(ids.view(shape.steps + 1, shape.micro_batch, shape.seq_len + 1))


def ours(trainer: str, shape: Shape, folder: Path) -> Result:
    """The job itself: `train`, as a user starts it. Its own rows are the measurement."""
    from app.observe.rows import local_rows

    run = f"{trainer}-{os.getpid()}"
    own = {"run_name": run, "trainer": trainer, "checkpoint_every_steps": 10 * (shape.steps + 1)}
    run_job("train", job_settings(shape, folder, **own))
    rows = local_rows(folder / "data" / "logs" / run)
    seconds = [b.time - a.time for a, b in pairwise(rows)]
    first = json.loads(next((folder / "checkpoints" / run / "attempts").iterdir()).read_text())
    return Result(
        tokens_per_second=shape.tokens_per_step / statistics.median(seconds),
        first_step_seconds=first["seconds_to_first_step"],
        peak_bytes=peak_bytes(shape),
        last_loss=rows[-1].loss,
    )


def plain_loop(
    forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    model: Any,
    shape: Shape,
    folder: Path,
) -> Result:
    """The textbook: one micro-batch a step, AdamW fused, clipping at 1."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=0.1, fused=True
    )
    seconds, first, last = [], 0.0, 0.0
    for step, rows in enumerate(batches(shape, folder)):
        tokens = rows.to(shape.device)
        started = time.perf_counter()
        with torch.autocast(
            shape.device, dtype=torch.bfloat16, enabled=shape.precision == "bf16-mixed"
        ):
            loss = forward(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        last = loss.item()  # waits for the device
        if step == 0:
            first = seconds_of_this_process() or 0.0
        else:
            seconds.append(time.perf_counter() - started)
    return Result(
        tokens_per_second=shape.tokens_per_step / statistics.median(seconds),
        first_step_seconds=first,
        peak_bytes=peak_bytes(shape),
        last_loss=last,
    )


def initial_llama(shape: Shape) -> Any:
    """With the weights that the job starts from."""
    ours = SmolLM2(PRESETS[shape.model])
    ours.initialize(RunSettings().seed)
    return llama(ours.config, ours.state_dict()).to(shape.device)


def hugging_face(shape: Shape, folder: Path, *, compiled: bool) -> Result:
    """With its own loss, of the job's targets: it must not shift them once more."""
    model = initial_llama(shape)
    run = torch.compile(model) if compiled else model

    def forward(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = run(input_ids=inputs, shift_labels=targets, labels=targets).loss
        return loss

    return plain_loop(forward, model, shape, folder)


def hugging_face_trainer(shape: Shape, folder: Path) -> Result:
    import accelerate  # noqa: F401 - what Trainer needs beside transformers
    from transformers import Trainer, TrainerCallback, TrainingArguments

    moments: list[float] = []
    first = 0.0

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            nonlocal first
            first = first or seconds_of_this_process() or 0.0
            moments.append(time.perf_counter())

    rows = torch.cat(batches(shape, folder))
    arguments = TrainingArguments(
        output_dir=str(folder / "hf"),
        per_device_train_batch_size=shape.micro_batch,
        max_steps=shape.steps + 1,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.1,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=shape.precision == "bf16-mixed",
        use_cpu=shape.device == "cpu",
        save_strategy="no",
        report_to=[],
        logging_steps=shape.steps + 1,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    data = [{"input_ids": row[:-1], "labels": row[1:], "shift_labels": row[1:]} for row in rows]
    trainer = Trainer(initial_llama(shape), arguments, train_dataset=data, callbacks=[Clock()])
    outcome = trainer.train()
    seconds = [b - a for a, b in pairwise(moments)]
    return Result(
        tokens_per_second=shape.tokens_per_step / statistics.median(seconds),
        first_step_seconds=first,
        peak_bytes=peak_bytes(shape),
        last_loss=float(outcome.training_loss),
    )


def litgpt(shape: Shape, folder: Path) -> Result:
    """litgpt's model of the same shape in the plain loop, with its own weights and loss."""
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    config = PRESETS[shape.model]
    model = GPT(
        Config(
            block_size=shape.seq_len,
            vocab_size=config.vocab_size,
            padded_vocab_size=config.vocab_size,
            n_layer=config.num_hidden_layers,
            n_head=config.num_attention_heads,
            n_query_groups=config.num_key_value_heads,
            n_embd=config.hidden_size,
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
            intermediate_size=config.intermediate_size,
        )
    ).to(shape.device)
    model.lm_head.weight = model.transformer.wte.weight

    def forward(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = chunked_cross_entropy(model(inputs), targets, chunk_size=0)
        return loss

    return plain_loop(forward, model, shape, folder)


def peak_bytes(shape: Shape) -> int:
    """Of the GPU's memory, or of this process's on a CPU."""
    if shape.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    candidate, shape, folder = sys.argv[1], Shape(**json.loads(sys.argv[2])), Path(sys.argv[3])
    if candidate == "tokens":
        print(len(batches(shape, folder)))
        return 0
    try:
        if candidate in OURS:
            result = ours(OURS[candidate], shape, folder)
        elif candidate == "hf-trainer":
            result = hugging_face_trainer(shape, folder)
        elif candidate == "litgpt":
            result = litgpt(shape, folder)
        else:
            result = hugging_face(shape, folder, compiled=candidate == "hf-compiled")
    except ImportError as error:
        print(error)
        return NOT_INSTALLED
    print(json.dumps(vars(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
