"""What a training process tells Prometheus, read as Prometheus reads it."""

from collections.abc import Iterator
from dataclasses import replace

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from app.observe.prometheus import Begun, RunMetrics, Saving
from tests.support.rows import row

SAVING = Saving(
    age=61.5, step=20, committed=3, failures=5, failures_in_a_row=4, commit=2.5, stall=0.25
)
# Attempt 3 goes on from step 20, 1,000 seconds after the run began; each earlier step took 1 s.
BEGUN = Begun(3, 20, 100, 1_700_000_000.0, [row(step) for step in range(1, 21)], lambda: SAVING)


def whole_metrics() -> RunMetrics:
    """With a number for each metric that there is."""
    metrics = RunMetrics("run", now=lambda: 1_700_001_000.0)
    metrics.begin(BEGUN)
    metrics.step_done(21, 2.0)
    metrics.write(replace(row(21), mfu=0.4, mfu_full=0.45, validation_loss=3.5))
    metrics.show_ranks([1.5, 1.75])
    return metrics


def families(text: str) -> Iterator[Metric]:
    """The job's own, without those of any process."""
    found = text_string_to_metric_families(text)
    return (family for family in found if family.name.startswith("smollm2_"))


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Value by name and labels: (name, "attempt=3", …)."""
    return {
        (
            sample.name,
            *(f"{name}={value}" for name, value in sorted(sample.labels.items())),
        ): sample.value
        for family in families(text)
        for sample in family.samples
    }


def names_of_metrics() -> set[str]:
    """As a query names them."""
    return {name for name, *_ in samples(whole_metrics().text())}
