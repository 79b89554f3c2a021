"""Steps to the same loss: training recipes side by side, on a small model and one CPU thread.

    python -m bench.recipes run --text input.txt --results runs.jsonl
    python -m bench.recipes report --results runs.jsonl --curve docs/recipes.svg

`run` makes the runs that `runs.jsonl` does not hold yet, one line for each; two processes
with another --optimizer share the work. `report` prints the tables and draws the curve.

Model, loss, optimizer, schedule, order of samples and tokenizer are the job's own code;
only the loop is here, since a run here is a minute long and needs no checkpoint.

Shapes: B sequences, T tokens.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from app.data.sample_order import SampleOrder
from app.data.tokenizer import train_tokenizer
from app.model.loss import LossFunction
from app.model.smollm2 import SmolLM2
from app.settings.presets import ModelConfig
from app.settings.variables import OptimizerSettings
from app.training.optimizer import build_optimizer
from app.training.schedule import WSD_DECAY_SHARE, Schedule
from bench.curve import Curve, draw

SHAPE = ModelConfig(
    hidden_size=96,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=1_024,
    max_position_embeddings=128,
)
SEQ_LEN = 128
BATCH = 8
STEPS = 250
WARMUP_STEPS = 25
DECAY_FROM = round(STEPS * (1 - WSD_DECAY_SHARE))
EVERY = 10
VALIDATION_SEQUENCES = 32
HELD_OUT = 0.1  # the end of the text
SEEDS = (1, 2, 3)
GRID = (1e-3, 3e-3, 1e-2, 3e-2)


@dataclass(frozen=True)
class Recipe:
    """What a run is trained with. The fields are the job's variables in lower case."""

    optimizer: str
    learning_rate: float
    adam_beta2: float = 0.95
    weight_decay: float = 0.01
    lr_schedule: str = "wsd"
    min_lr_ratio: float = 0.0
    init: str = "scaled"

    @property
    def settings(self) -> OptimizerSettings:
        fields = {name: value for name, value in asdict(self).items() if name != "init"}
        return OptimizerSettings(**fields, warmup_steps=WARMUP_STEPS)


ORIGINAL = Recipe("adamw", 3e-4, 0.999, 0.1, "cosine", 0.1, "normal")
SMOLLM2 = Recipe("adamw", 3e-3)
SMOLLM2_NORMAL = Recipe("adamw", 3e-3, init="normal")
NAMED = {
    "original": ORIGINAL,
    "SmolLM2, INIT=normal": SMOLLM2_NORMAL,
    "SmolLM2": SMOLLM2,
}


@dataclass(frozen=True)
class Run:
    """One finished run: validation losses in nats per token, at the steps EVERY, 2 · EVERY, …"""

    recipe: Recipe
    seed: int
    losses: tuple[float, ...]
    seconds: float

    @property
    def final(self) -> float:
        return self.losses[-1] if math.isfinite(self.losses[-1]) else math.inf

    def steps_to(self, loss: float) -> float | None:
        """The step at which the validation loss first is `loss`, between two evaluations linear."""
        before = math.inf
        for number, now in enumerate(self.losses, start=1):
            if now <= loss:
                part = (before - loss) / (before - now) if math.isfinite(before) else 1.0
                return EVERY * (number - 1 + part)
            before = now
        return None


class Corpus:
    """A text as sequences (T + 1) of token ids; the tokenizer has seen the training part only."""

    def __init__(self, path: Path) -> None:
        text = path.read_text("utf-8")
        cut = round(len(text) * (1 - HELD_OUT))
        tokenizer = train_tokenizer([text[:cut]], SHAPE.vocab_size)
        self.train = torch.tensor(tokenizer.encode(text[:cut]).ids)
        self.held_out = torch.tensor(tokenizer.encode(text[cut:]).ids)

    def batch(self, step: int, seed: int) -> Tensor:
        """The sequences (B, T + 1) of optimizer step `step`, counted from 0."""
        order = SampleOrder((len(self.train) - 1) // SEQ_LEN, seed)
        numbers = [order.sequence_at(step * BATCH + row) for row in range(BATCH)]
        return torch.stack([self._sequence(self.train, number) for number in numbers])

    def validation(self) -> Iterator[Tensor]:
        for first in range(0, VALIDATION_SEQUENCES, BATCH):
            rows = range(first, first + BATCH)
            yield torch.stack([self._sequence(self.held_out, row) for row in rows])

    @staticmethod
    def _sequence(tokens: Tensor, number: int) -> Tensor:
        return tokens[number * SEQ_LEN : number * SEQ_LEN + SEQ_LEN + 1]


def train(recipe: Recipe, seed: int, corpus: Corpus) -> Run:
    """One run of STEPS steps."""
    started = time.process_time()
    model = SmolLM2(SHAPE)
    model.initialize(seed, recipe.init)
    settings = recipe.settings
    optimizer = build_optimizer(model, settings, torch.device("cpu"))
    schedule, loss_function = Schedule(settings, [STEPS]), LossFunction(model, compile_model=False)
    losses: list[float] = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(step)
        optimizer.zero_grad()
        loss_function(corpus.batch(step, seed)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
        optimizer.step()
        if (step + 1) % EVERY == 0:
            losses.append(validation_loss(loss_function, corpus))
    return Run(recipe, seed, tuple(losses), time.process_time() - started)


@torch.no_grad()
def validation_loss(loss_function: LossFunction, corpus: Corpus) -> float:
    batches = [float(loss_function(tokens)) for tokens in corpus.validation()]
    return sum(batches) / len(batches)


class Results:
    """The file of runs: one JSON object in a line, appended as soon as a run is finished."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def runs(self) -> list[Run]:
        if not self._path.exists():
            return []
        lines = [json.loads(line) for line in self._path.read_text("utf-8").splitlines()]
        return [
            Run(Recipe(**line["recipe"]), line["seed"], tuple(line["losses"]), line["seconds"])
            for line in lines
        ]

    def of(self, recipe: Recipe) -> list[Run]:
        return [run for run in self.runs() if run.recipe == recipe]

    def make(self, recipe: Recipe, seed: int, corpus: Corpus) -> None:
        """Train, unless the run is there."""
        if any(run.seed == seed for run in self.of(recipe)):
            return
        run = train(recipe, seed, corpus)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(run)) + "\n")
        print(f"{recipe} seed {seed}: {run.final:.4f}, {run.seconds:.0f} s", flush=True)

    def tuned(self, optimizer: str) -> Recipe:
        """The recipe with the lowest last loss over GRID, with the first seed."""
        runs = [
            run for run in self.runs() if run.seed == SEEDS[0] and run.recipe in grid(optimizer)
        ]
        return min(runs, key=lambda run: run.final).recipe


def grid(optimizer: str) -> list[Recipe]:
    return [Recipe(optimizer, learning_rate) for learning_rate in GRID]


def run_all(text: Path, results: Results, optimizers: Sequence[str]) -> None:
    corpus = Corpus(text)
    print(
        f"{len(corpus.train):,} tokens to train on, {len(corpus.held_out):,} held out", flush=True
    )
    for optimizer in optimizers:
        for recipe in grid(optimizer):
            results.make(recipe, SEEDS[0], corpus)
        named = [r for r in NAMED.values() if r.optimizer == optimizer]
        for recipe in [results.tuned(optimizer), *named]:
            for seed in SEEDS:
                results.make(recipe, seed, corpus)


def report(results: Results, curve: Path | None) -> None:
    """The tables in Markdown, and the curve."""
    chosen = dict(NAMED)
    for name, recipe in tuned_recipes(results).items():
        if recipe not in chosen.values():
            chosen[name] = recipe
    best = results.of(results.tuned("adamw"))
    # What the original recipe ends at; AdamW's best where its rate begins to fall; its end.
    goals = [middle(results.of(ORIGINAL), STEPS), middle(best, DECAY_FROM), middle(best, STEPS)]
    print(f"{SHAPE.parameter_count:,} parameters, {BATCH * SEQ_LEN:,} tokens in a step\n")
    print("| recipe | last loss |" + "".join(f" steps to {goal:.3f} |" for goal in goals))
    print("|---|---|---|---|---|")
    for name, recipe in chosen.items():
        runs = results.of(recipe)
        cells = [spread([run.final for run in runs], 3)]
        cells += [steps_to(runs, goal) for goal in goals]
        print(f"| {name} | {' | '.join(cells)} |")
    print("\n| learning rate | " + " | ".join(f"{rate:g}" for rate in GRID) + " |")
    print("|---|" + "---|" * len(GRID))
    for optimizer in ("adamw", "muon"):
        first = [run for r in grid(optimizer) for run in results.of(r) if run.seed == SEEDS[0]]
        print(f"| {optimizer} | " + " | ".join(f"{run.final:.3f}" for run in first) + " |")
    for optimizer in ("adamw", "muon"):
        seconds = [run.seconds for run in results.runs() if run.recipe.optimizer == optimizer]
        print(f"\n{optimizer}: {len(seconds)} runs, {median(seconds):.0f} s of CPU each")
    if curve:
        evaluated = range(EVERY, STEPS + 1, EVERY)
        curves = [
            Curve(name, list(zip(evaluated, *_band(results.of(recipe)), strict=True)))
            for name, recipe in chosen.items()
        ]
        curve.write_text(draw(curves, goals), "utf-8")


def tuned_recipes(results: Results) -> dict[str, Recipe]:
    """The best of each grid, under the name that it gets in the table."""
    best = {optimizer: results.tuned(optimizer) for optimizer in ("adamw", "muon")}
    return {
        f"{name}, learning rate {best[optimizer].learning_rate:g}": best[optimizer]
        for name, optimizer in (("AdamW", "adamw"), ("Muon", "muon"))
    }


def middle(runs: Sequence[Run], step: int) -> float:
    """The median of the runs' losses after `step` steps."""
    return median(run.losses[step // EVERY - 1] for run in runs)


def steps_to(runs: Sequence[Run], goal: float) -> str:
    """Steps of the runs that got to `goal`, and how many did."""
    steps = [step for step in (run.steps_to(goal) for run in runs) if step is not None]
    return f"{spread(steps, 0)}, {len(steps)} of {len(runs)}" if steps else "never"


def spread(values: Sequence[float], digits: int) -> str:
    """Median, and the range."""
    if not values:
        return "never"
    low, high = min(values), max(values)
    return f"{median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _band(runs: Sequence[Run]) -> tuple[list[float], list[float], list[float]]:
    columns = list(zip(*(run.losses for run in runs), strict=True))
    return [min(c) for c in columns], [median(c) for c in columns], [max(c) for c in columns]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="make the runs that are missing")
    run.add_argument("--text", type=Path, required=True, help="the corpus, a text file")
    run.add_argument("--optimizer", choices=["adamw", "muon"], help="only the recipes with this")
    shown = commands.add_parser("report", help="print the tables, draw the curve")
    shown.add_argument("--curve", type=Path, help="an SVG file to write")
    for command in (run, shown):
        command.add_argument("--results", type=Path, required=True, help="file of finished runs")
    options = parser.parse_args()
    results = Results(options.results)
    if options.command == "report":
        report(results, options.curve)
        return
    torch.set_num_threads(1)
    optimizers = [options.optimizer] if options.optimizer else ["adamw", "muon"]
    run_all(options.text, results, optimizers)


if __name__ == "__main__":
    main()
