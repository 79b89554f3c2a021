"""What is published of SmolLM2-135M, to stand beside one's own numbers.

From the model card of HuggingFaceTB/SmolLM2-135M, "Base pre-trained model": zero-shot, measured
with lighteval, whose prompts are not those of lm-evaluation-harness. The metric is the accuracy
with the lengths of the answers taken into account (acc_norm), and ARC is the mean of both parts.
The card has no number for LAMBADA.
"""

from collections.abc import Mapping

SOURCE = "model card of HuggingFaceTB/SmolLM2-135M: zero-shot, lighteval"

ARC_AVERAGE = "arc (average)"  # of arc_easy and arc_challenge

_PUBLISHED: Mapping[tuple[str, str], float] = {
    ("hellaswag", "acc_norm"): 0.421,
    (ARC_AVERAGE, "acc_norm"): 0.439,
    ("piqa", "acc_norm"): 0.684,
    ("winogrande", "acc"): 0.513,
    ("openbookqa", "acc_norm"): 0.346,
}


def published(task: str, metric: str) -> float | None:
    """The published value; None where there is none."""
    return _PUBLISHED.get((task, metric))
