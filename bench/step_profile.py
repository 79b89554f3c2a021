"""Where the time of a training step on a CPU goes, beside what its matrix products cost alone.

    python -m bench.step_profile [--micro_batch 2] [--seq_len 1024] [--json out.json]

First the products of the model, each shape by itself, forwards and both ways back: the least
that a step can take on this machine. Then a step of this job and one of `transformers`, by
torch's profiler: seconds in products, attention, the optimizer and the rest. They take turns,
`--rounds` times; medians are printed.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from app.model.loss import LossFunction
from app.model.smollm2 import SmolLM2, flops_per_token
from app.settings.presets import PRESETS, ModelConfig
from app.settings.variables import ComputeSettings, OptimizerSettings
from app.training.compute import resolve_compute
from app.training.optimizer import build_optimizer
from bench.reference import llama

KINDS = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("aten::_scaled_dot_product",),
    "optimizer": ("aten::_fused_adamw", "aten::_foreach", "aten::linalg_vector_norm"),
    "loss": ("aten::_log_softmax", "aten::nll_loss", "aten::_softmax", "aten::logsumexp"),
    "copies": ("aten::copy_", "aten::clone", "aten::cat", "aten::fill_", "aten::zero_"),
}


def products(config: ModelConfig) -> Counter[tuple[int, int]]:
    """(inputs, outputs) of every matrix, and how often a token is multiplied by one."""
    d, kv = config.hidden_size, config.num_key_value_heads * config.head_dim
    layer = [(d, d), (d, kv), (d, kv), (d, d)]
    layer += [(d, config.intermediate_size)] * 2 + [(config.intermediate_size, d)]
    return Counter({(d, config.vocab_size): 1}) + Counter(layer * config.num_hidden_layers)


def product_seconds(n_inputs: int, n_outputs: int, rows: int) -> float:
    """Of one product forwards, one for the inputs' gradient and one for the matrix's."""
    x, w = torch.randn(rows, n_inputs), torch.randn(n_outputs, n_inputs)
    y = torch.randn(rows, n_outputs)

    def once() -> float:
        began = time.perf_counter()
        torch.mm(x, w.t(), out=y)
        torch.mm(y, w)
        torch.mm(y.t(), x)
        return time.perf_counter() - began

    once()
    return statistics.median(once() for _ in range(5))


def initialized(config: ModelConfig) -> SmolLM2:
    model = SmolLM2(config)
    model.initialize(1)
    return model


def step_of_this_job(config: ModelConfig, tokens: torch.Tensor) -> Callable[[], None]:
    compute = resolve_compute(ComputeSettings.model_validate({"device": "cpu"}))
    model = initialized(config)
    loss = LossFunction(model, compile_model=False, fused=compute.fused_loss)
    return _step(model, lambda: loss(tokens))


def step_of_transformers(config: ModelConfig, tokens: torch.Tensor) -> Callable[[], None]:
    model = llama(config, initialized(config).state_dict())
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    return _step(model, lambda: model(input_ids=inputs, labels=targets, shift_labels=targets).loss)


def _step(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    optimizer = build_optimizer(model, OptimizerSettings(), torch.device("cpu"))

    def step() -> None:
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def profiled(step: Callable[[], None]) -> dict[str, float]:
    """Seconds of wall time in a step, by kind of operation."""
    began = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step()
    total = time.perf_counter() - began
    seconds = dict.fromkeys(KINDS, 0.0)
    for event in recorded.key_averages():
        for kind, names in KINDS.items():
            if event.key.startswith(names):
                seconds[kind] += event.self_cpu_time_total / 1e6
                break
    return seconds | {"rest": total - sum(seconds.values()), "whole step": total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m", choices=sorted(PRESETS))
    parser.add_argument("--micro_batch", type=int, default=2)
    parser.add_argument("--seq_len", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    config, rows = PRESETS[arguments.model], arguments.micro_batch * arguments.seq_len

    shapes = {}
    for (n_inputs, n_outputs), count in products(config).items():
        seconds = product_seconds(n_inputs, n_outputs, rows)
        shapes[f"{n_inputs} x {n_outputs}"] = {
            "count": count,
            "seconds": count * seconds,
            "gflops": 6 * rows * n_inputs * n_outputs / seconds / 1e9,
        }
    print(f"{'product':>16}{'count':>7}{'seconds':>10}{'GFLOP/s':>10}")
    for name, row in shapes.items():
        print(f"{name:>16}{row['count']:>7}{row['seconds']:>10.2f}{row['gflops']:>10.0f}")
    least = sum(row["seconds"] for row in shapes.values())
    print(f"{'all':>16}{'':>7}{least:>10.2f}")

    tokens = torch.randint(
        config.vocab_size,
        (arguments.micro_batch, arguments.seq_len + 1),
        generator=torch.Generator().manual_seed(1),
    )
    steps = {
        "this job": step_of_this_job(config, tokens),
        "transformers": step_of_transformers(config, tokens),
    }
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for turn in range(arguments.rounds + 1):
        for name, step in steps.items():
            seconds_by_kind = profiled(step)
            if turn:
                rounds[name].append(seconds_by_kind)
    table = {
        name: {kind: statistics.median(one[kind] for one in all_) for kind in all_[0]}
        for name, all_ in rounds.items()
    }
    print(f"\n{'seconds':>16}" + "".join(f"{name:>14}" for name in table))
    for kind in next(iter(table.values())):
        print(f"{kind:>16}" + "".join(f"{row[kind]:>14.2f}" for row in table.values()))
    speed = rows * flops_per_token(config, arguments.seq_len) / 1e9
    print(
        f"{'GFLOP/s':>16}"
        + "".join(f"{speed / row['whole step']:>14.0f}" for row in table.values())
    )
    if arguments.json:
        report = {"products": shapes, "least_seconds": least, "steps": table}
        Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
