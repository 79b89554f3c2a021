"""One candidate of `bench.train`, in a process of its own; the last line printed is its result."""

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from app.attempts import seconds_of_this_process
from app.presets import PRESETS
from bench.train import OURS, Result, Shape

NOT_INSTALLED = 3
VOCABULARY = 49_152


def ours(trainer: str, shape: Shape, folder: Path) -> Result:
    """The job itself: `train`, as a user starts it. Its own rows are the measurement."""
    from app.cli import main
    from app.metrics import local_rows

    run = f"{trainer}-{os.getpid()}"
    steps = shape.steps + 1
    settings = {
        "run_name": run,
        "trainer": trainer,
        "model": shape.model,
        "device": shape.device,
        "precision": shape.precision,
        "compile": str(shape.compile).lower(),
        "seq_len": shape.seq_len,
        "batch_size": shape.micro_batch,
        "global_batch_size": shape.micro_batch,
        "total_steps": steps,
        "checkpoint_every_steps": 10 * steps,
        "keep_top": 0,
        "data_dir": folder / "data",
        "checkpoint_uri": f"file://{folder}/checkpoints",
        "loggers": "none",
    }
    code = main(["train", *(f"--{name}={value}" for name, value in settings.items())])
    if code != 0:
        raise RuntimeError(f"the job ended with {code}")
    rows = local_rows(folder / "data" / "logs" / run)
    seconds = [b.time - a.time for a, b in pairwise(rows)]
    first = json.loads(next((folder / "checkpoints" / run / "attempts").iterdir()).read_text())
    return Result(
        tokens_per_second=shape.tokens_per_step / statistics.median(seconds),
        first_step_seconds=first["seconds_to_first_step"],
        peak_bytes=peak_bytes(shape),
        last_loss=rows[-1].loss,
    )


def plain_loop(forward: Callable[[torch.Tensor], torch.Tensor], model: Any, shape: Shape) -> Result:
    """The textbook: one micro-batch a step, AdamW fused, clipping at 1."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1, fused=True)
    generator = torch.Generator().manual_seed(1)
    size = (shape.micro_batch, shape.seq_len)
    seconds, first, loss = [], 0.0, torch.zeros(())
    for step in range(shape.steps + 1):
        tokens = torch.randint(0, VOCABULARY, size, generator=generator).to(shape.device)
        started = time.perf_counter()
        with torch.autocast(
            shape.device, dtype=torch.bfloat16, enabled=shape.precision == "bf16-mixed"
        ):
            loss = forward(tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        last = float(loss)  # waits for the device
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


def llama(shape: Shape) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = PRESETS[shape.model]
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            max_position_embeddings=max(config.max_position_embeddings, shape.seq_len),
            tie_word_embeddings=True,
            initializer_range=config.initializer_range,
        )
    )
    return model.to(shape.device)


def hugging_face(shape: Shape, *, compiled: bool) -> Result:
    model = llama(shape)
    run = torch.compile(model) if compiled else model
    return plain_loop(lambda tokens: run(input_ids=tokens, labels=tokens).loss, model, shape)


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

    generator = torch.Generator().manual_seed(1)
    n = shape.micro_batch * (shape.steps + 1)
    rows = torch.randint(0, VOCABULARY, (n, shape.seq_len), generator=generator)
    arguments = TrainingArguments(
        output_dir=str(folder / "hf"),
        per_device_train_batch_size=shape.micro_batch,
        max_steps=shape.steps + 1,
        learning_rate=3e-4,
        weight_decay=0.1,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=shape.precision == "bf16-mixed",
        use_cpu=shape.device == "cpu",
        save_strategy="no",
        report_to=[],
        logging_steps=shape.steps + 1,
        disable_tqdm=True,
    )
    data = [{"input_ids": row, "labels": row} for row in rows]
    trainer = Trainer(llama(shape), arguments, train_dataset=data, callbacks=[Clock()])
    outcome = trainer.train()
    seconds = [b - a for a, b in pairwise(moments)]
    return Result(
        tokens_per_second=shape.tokens_per_step / statistics.median(seconds),
        first_step_seconds=first,
        peak_bytes=peak_bytes(shape),
        last_loss=float(outcome.training_loss),
    )


def litgpt(shape: Shape) -> Result:
    """litgpt's model of the same shape in the plain loop, with its own loss in parts."""
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

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        logits = model(tokens)
        loss: torch.Tensor = chunked_cross_entropy(logits[:, :-1], tokens[:, 1:], chunk_size=0)
        return loss

    return plain_loop(forward, model, shape)


def peak_bytes(shape: Shape) -> int:
    """Of the GPU's memory, or of this process's on a CPU."""
    if shape.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    candidate, shape, folder = sys.argv[1], Shape(**json.loads(sys.argv[2])), Path(sys.argv[3])
    try:
        if candidate in OURS:
            result = ours(OURS[candidate], shape, folder)
        elif candidate == "hf-trainer":
            result = hugging_face_trainer(shape, folder)
        elif candidate == "litgpt":
            result = litgpt(shape)
        else:
            result = hugging_face(shape, compiled=candidate == "hf-compiled")
    except ImportError as error:
        print(error)
        return NOT_INSTALLED
    print(json.dumps(vars(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
