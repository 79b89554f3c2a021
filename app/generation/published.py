"""What is published of SmolLM2-135M, to stand beside one's own numbers.

From the model card of HuggingFaceTB/SmolLM2-135M, "Base pre-trained model": zero-shot, measured
with lighteval, whose prompts are not those of lm-evaluation-harness. The metric is the accuracy
with the lengths of the answers taken into account (acc_norm), and ARC is the mean of both parts.
The card has no number for LAMBADA.
"""

from collections.abc import Iterable, Mapping

from app.generation.tasks import TaskResult

SOURCE = "model card of HuggingFaceTB/SmolLM2-135M: zero-shot, lighteval"

_PUBLISHED: Mapping[tuple[str, str], float] = {
    ("hellaswag", "acc_norm"): 0.421,
    ("arc (average)", "acc_norm"): 0.439,
    ("piqa", "acc_norm"): 0.684,
    ("winogrande", "acc"): 0.513,
    ("openbookqa", "acc_norm"): 0.346,
}


def published(task: str, metric: str) -> float | None:
    """The published value; None where there is none."""
    return _PUBLISHED.get((task, metric))


def arc_average(results: Iterable[TaskResult]) -> TaskResult | None:
    """The mean of both parts of ARC, as the card has it; None unless both were run."""
    found = {one.task: one for one in results if one.metric == "acc_norm"}
    easy, hard = found.get("arc_easy"), found.get("arc_challenge")
    if easy is None or hard is None:
        return None
    both = (easy.stderr, hard.stderr)
    stderr = None if None in both else 0.5 * sum(error**2 for error in both if error) ** 0.5
    return TaskResult(
        "arc (average)",
        "acc_norm",
        (easy.value + hard.value) / 2,
        stderr,
        easy.samples + hard.samples,
        easy.fewshot,
        easy.version,
    )
