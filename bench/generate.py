"""Tokens per second at batch 1: this project's decoding beside `transformers.generate`.

    python bench/generate.py [--threads 2] [--json results.json]

Both get the same random weights of MODEL's shape in float32, the same prompt of token ids
and the same number of new tokens, greedy and sampled (temperature 0.8, top-k 50, top-p
0.95). Runs alternate. Wall time is what a person waits; the processor time of the process
says the same where other work shares the machine.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent))

from app.generation.decoding import Sampling, generate_tokens
from app.generation.inference import InferenceModel
from app.model.smollm2 import SmolLM2
from app.settings.presets import PRESETS, ModelConfig
from bench.reference import llama

CASES = {"greedy": Sampling(temperature=0), "sampled": Sampling()}


def reference_model(config: ModelConfig, weights: dict[str, torch.Tensor]) -> LlamaForCausalLM:
    model = llama(config, weights)
    model.generation_config.eos_token_id = None  # both make every token that is asked for
    model.generation_config.pad_token_id = 0
    return model.eval()


def measured(run: Callable[[], list[int]], n_new: int) -> dict[str, Any]:
    """Seconds of wall and processor time for `n_new` tokens, and the tokens."""
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert len(tokens) == n_new, f"{len(tokens)} tokens instead of {n_new}"
    return {"wall": wall, "cpu": cpu, "tokens": tokens}


def compare(
    ours: InferenceModel,
    theirs: LlamaForCausalLM,
    prompt: list[int],
    sampling: Sampling,
    repeats: int,
) -> dict[str, Any]:
    """Medians of alternating runs, after one run of each that is not counted."""
    ids = torch.tensor([prompt])
    options: dict[str, Any] = {"do_sample": False}
    if sampling.temperature:
        options = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
        }
    n_new = sampling.max_tokens

    def reference() -> list[int]:
        mask = torch.ones_like(ids)
        model: Any = theirs
        out = model.generate(ids, attention_mask=mask, max_new_tokens=n_new, **options)
        return out[0, len(prompt) :].tolist()

    def own() -> list[int]:
        return list(generate_tokens(ours, prompt, sampling, None))

    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "transformers": []}
    for _ in range(repeats + 1):
        runs["ours"].append(measured(own, n_new))
        runs["transformers"].append(measured(reference, n_new))
    result: dict[str, Any] = {}
    for clock in ("wall", "cpu"):
        seconds = {name: [run[clock] for run in all_runs[1:]] for name, all_runs in runs.items()}
        rates = {name: n_new / statistics.median(values) for name, values in seconds.items()}
        pairs = zip(seconds["transformers"], seconds["ours"], strict=True)
        result[clock] = {
            **rates,
            "ratio": statistics.median(theirs / ours for theirs, ours in pairs),
            "seconds": seconds,
        }
    if not sampling.temperature:
        result["same_tokens"] = runs["ours"][0]["tokens"] == runs["transformers"][0]["tokens"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m", choices=sorted(PRESETS))
    parser.add_argument("--prompt_tokens", type=int, default=64)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = PRESETS[arguments.model]
    model = SmolLM2(config)
    model.initialize(1337)
    theirs = reference_model(config, model.state_dict())
    ours = InferenceModel(model, packed=True)
    drawn = torch.Generator().manual_seed(1)
    prompt = torch.randint(config.vocab_size, (arguments.prompt_tokens,), generator=drawn).tolist()
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": arguments.threads,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers")},
    }
    report: dict[str, Any] = {"machine": machine, "arguments": vars(arguments)}
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    for name, case in CASES.items():
        sampling = Sampling(**{**vars(case), "max_tokens": arguments.new_tokens})
        report[name] = result = compare(ours, theirs, prompt, sampling, arguments.repeats)
        for clock in ("wall", "cpu"):
            row = result[clock]
            print(
                f"{name:8} {clock:4}  ours {row['ours']:6.1f} tokens/s   "
                f"transformers {row['transformers']:6.1f} tokens/s   ratio {row['ratio']:.2f}",
                flush=True,
            )
    print(f"greedy tokens are the same: {report['greedy']['same_tokens']}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
