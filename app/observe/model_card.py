"""README.md of an exported model: what the store knows of the run that made it.

The hub reads the YAML at its beginning: https://huggingface.co/docs/hub/model-cards.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from app.console import counted, duration, redacted
from app.observe.goodput import measured
from app.observe.reported_run import ReportedRun
from app.observe.rows import Row, perplexity
from app.printable import printable
from app.run.evaluations import Evaluation
from app.run.layout import CheckpointName
from app.state.identity import Identity
from app.state.progress import Progress

CURVES_FILE = "curves.svg"

_LONGEST_CELL = 500  # characters

_LOAD = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

place = "{place}"
model = AutoModelForCausalLM.from_pretrained(place{revision})
tokenizer = AutoTokenizer.from_pretrained(place{revision})
tokens = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**tokens, max_new_tokens=40)[0]))
```"""


@dataclass(frozen=True)
class Exported:
    """A checkpoint that is exported, and as what.

    `place` is what `from_pretrained` is given: a hub id, at `revision` unless that is None, or the
    name of a folder. `dtype` is the type of the weights, `gguf` the name of the file for llama.cpp
    if there is one. `evaluations` are those of these weights.
    """

    name: CheckpointName
    progress: Progress
    identity: Identity
    dtype: str
    place: str
    revision: str | None = None
    gguf: str | None = None
    evaluations: Sequence[Evaluation] = ()


def model_card(run: ReportedRun, model: Exported) -> str:
    """Markdown that begins with YAML. Nothing that a store holds can end a cell or a block."""
    metadata = yaml.safe_dump(_metadata(run, model), sort_keys=False, allow_unicode=True)
    revision = "" if model.revision is None else f', revision="{model.revision}"'
    sections = {
        "Load it": [_LOAD.format(place=model.place, revision=revision), *_gguf(model)],
        "Training": _table(_training(run, model)),
        "Data": _table(_data(model)),
        "Curves": [f"![Curves of the run, step by step]({CURVES_FILE})"],
        "Evaluation": _table(_evaluation(run, model)),
        "How the run went": _table(_attempts(run)),
        "Versions": _table(sorted(model.progress.versions.items())),
    }
    text = "\n".join(
        f"\n## {title}\n\n" + "\n".join(lines) + "\n" for title, lines in sections.items() if lines
    )
    return f"---\n{metadata}---\n\n# {_cell(run.name)}\n\n{_summary(run, model)}\n{text}"


def rows_until(run: ReportedRun, step: int) -> list[Row]:
    """The rows of the steps that made the weights of this step."""
    return [row for row in run.rows if row.step <= step]


def _metadata(run: ReportedRun, model: Exported) -> Mapping[str, Any]:
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"type": _plain(of), "name": _plain(of)},
            "metrics": [
                {"type": _plain(metric), "name": _plain(f"{task}: {metric}"), "value": value}
            ],
        }
        for task, metric, of, value in _measured_values(run, model)
    ]
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llama", "pretrained", "smollm2-spot-trainer"],
    }
    if results:
        metadata["model-index"] = [{"name": _plain(run.name), "results": results}]
    return metadata


def _summary(run: ReportedRun, model: Exported) -> str:
    identity, progress = model.identity, model.progress
    count = run.parameter_count
    parameters = "" if count is None else f" of {count:,} parameters"
    begun = f"the weights of {identity.init_from}" if identity.init_from else "random weights"
    return (
        f"A Llama model{parameters} (`{_cell(identity.model)}`), trained from {_cell(begun)} for "
        f"{counted(progress.step, 'step')}, which are {progress.tokens:,} tokens. Its weights are "
        f"in {model.dtype}. It continues text: it was not taught to follow instructions, and says "
        "what its data say, whether true or not."
    )


def _gguf(model: Exported) -> Iterator[str]:
    if model.gguf:
        yield f"\nWith llama.cpp: `llama-cli -m {model.gguf} -p 'Once upon a time'`"


def _training(run: ReportedRun, model: Exported) -> Iterator[tuple[str, Any]]:
    identity, progress = model.identity, model.progress
    yield "checkpoint", f"{model.name} of the run {run.name}"
    yield "steps", progress.step
    if run.record is not None:
        yield "target", " → ".join(f"{step:,}" for step in run.record.horizons)
    yield "tokens in a step", identity.seq_len * identity.global_batch_size
    yield "sequence length", identity.seq_len
    yield "sequences in a step", identity.global_batch_size
    yield "first weights", identity.init_from or f"{identity.init}, seed {identity.seed}"
    yield from progress.optimizer.items()
    yield "documents see each other", "no" if progress.document_mask else "yes"
    yield "trainer", progress.trainer
    for name, value in (("precision", progress.precision), ("device", progress.device)):
        if value is not None:
            yield name, value
    yield from identity.shape.items()


def _data(model: Exported) -> Iterator[tuple[str, Any]]:
    identity = model.identity
    yield "dataset", identity.dataset
    if identity.dataset_revision:
        yield "revision", identity.dataset_revision
    yield "fingerprint", identity.dataset_fingerprint
    yield "tokens seen", model.progress.tokens
    yield "tokenizer", identity.tokenizer
    yield "tokenizer's fingerprint", identity.tokenizer_fingerprint


def _measured_values(run: ReportedRun, model: Exported) -> Iterator[tuple[str, str, str, float]]:
    """(task, metric, text or data set, value) of these weights; what is not finite is left out."""
    name, found = model.name, []
    of_this_step = [row for row in run.rows if (row.step, row.attempt) == (name.step, name.epoch)]
    if of_this_step and (loss := of_this_step[-1].validation_loss) is not None:
        data = f"validation part of {model.identity.dataset}"
        found.append(("validation", "loss", data, loss))
        found.append(("validation", "perplexity", data, perplexity(loss)))
    found += [(one.task, one.metric, one.of, one.value) for one in model.evaluations]
    yield from (one for one in found if math.isfinite(one[3]))


def _evaluation(run: ReportedRun, model: Exported) -> Iterator[tuple[str, Any]]:
    values = list(_measured_values(run, model))
    for task, metric, of, value in values:
        yield f"{task}: {metric} ({of})", f"{value:.4f}"
    last = model.progress.validation_loss
    if not values and last is not None:
        yield "validation loss, last measured before this step", f"{last:.4f}"
    if not values and last is None:
        yield "validation loss", "not measured"


def _attempts(run: ReportedRun) -> Iterator[tuple[str, Any]]:
    if not run.attempts:
        return
    yield "attempts", len(run.attempts)
    yield "steps made twice", sum(attempt.steps_lost for attempt in run.attempts)
    if run.spans:
        whole = max(span.end for span in run.spans) - run.spans[0].start
        yield (
            "training",
            f"{duration(sum(s.end - s.start for s in run.spans))} of {duration(whole)}",
        )
    if (share := measured(run).goodput) is not None:
        yield "goodput", f"{share:.1%} of that time went into steps that were kept"


def _table(rows: Iterator[tuple[str, Any]] | Sequence[tuple[str, Any]]) -> list[str]:
    lines = [
        f"| {_cell(str(name))} | {_cell(f'{value:,}' if type(value) is int else str(value))} |"
        for name, value in rows
    ]
    return ["| | |", "|---|---|", *lines] if lines else []


def _plain(text: str) -> str:
    return printable(redacted(text))[:_LONGEST_CELL]


def _cell(text: str) -> str:
    """Text that stays text in a table of Markdown."""
    for sign in ("\\", "|", "<", "`", "[", "]", "*"):
        text = text.replace(sign, "&lt;" if sign == "<" else f"\\{sign}")
    return _plain(text)
