"""What a training process tells Prometheus. docs/watching.md has the table of these metrics.

Everything is put together when it is asked for: an age is the age at that moment, and a store that
hangs holds no answer up, since it is not asked.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from app.observe.goodput import step_seconds
from app.observe.rows import Row

_LABELS = ("run", "attempt", "rank")
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)


@dataclass(frozen=True)
class Saving:
    """How saving goes in an attempt. Times in seconds.

    `age` is that of the newest checkpoint, of `step`; None before the first one of the run.
    `failures` are the tries that the store did not take, `failures_in_a_row` those since the last
    commit. `commit` is what the last commit took, 0.0 before it, and `stall` what all saves
    together have held training up for.
    """

    age: float | None
    step: int
    committed: int
    failures: int
    failures_in_a_row: int
    commit: float
    stall: float


@dataclass(frozen=True)
class Begun:
    """An attempt that makes the steps from `start_step` to `target`.

    `run_begun` is when the run's first attempt began, in Unix seconds, and `earlier` are the rows
    of the steps that were kept.
    """

    attempt: int
    start_step: int
    target: int
    run_begun: float
    earlier: Sequence[Row]
    saving: Callable[[], Saving]


class RunMetrics(Collector):
    """The metrics of `run` as this process has them; of the process alone until `begin`.

    The thread that trains writes, and others read: what they see may be a step old, no more.
    """

    def __init__(self, run: str, rank: int = 0, now: Callable[[], float] = time.time) -> None:
        self._run, self._rank, self._now = run, str(rank), now
        self._begun: Begun | None = None
        self._row: Row | None = None  # the newest of the run
        self._validation_loss: float | None = None
        self._step: tuple[int, float] | None = None  # the newest, and when it was over
        self._counts, self._sum = [0] * (len(_BUCKETS) + 1), 0.0  # of steps, and their seconds
        self._earlier_seconds = 0.0  # of the steps that earlier attempts made, and that were kept
        self._rank_seconds: Sequence[float] = ()
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def text(self) -> str:
        """All of it, in Prometheus's text format 0.0.4."""
        return generate_latest(self._registry).decode()

    def begin(self, begun: Begun) -> None:
        """From here on this process trains."""
        losses = [row.validation_loss for row in begun.earlier if row.validation_loss is not None]
        self._validation_loss = losses[-1] if losses else None
        self._row = begun.earlier[-1] if begun.earlier else None
        self._earlier_seconds = begun.start_step * (step_seconds(begun.earlier) or 0.0)
        self._begun = begun

    def step_done(self, step: int, seconds: float) -> None:
        """`seconds` without waiting for data, evaluating, logging and saving."""
        self._counts[bisect_left(_BUCKETS, seconds)] += 1
        self._sum += seconds
        self._step = step, self._now()

    def write(self, row: Row) -> None:
        self._row = row
        if row.validation_loss is not None:
            self._validation_loss = row.validation_loss

    def show_ranks(self, step_seconds: Sequence[float]) -> None:
        """What each rank needs for its own part of a step, in seconds."""
        self._rank_seconds = step_seconds

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        if self._begun is None:
            return
        yield from self._of_training(self._begun)
        if self._row is not None:
            yield from self._of_the_row(self._row)
        yield from self._of_saving(self._begun.saving())
        yield from self._of_the_ranks(self._begun)

    def _of_training(self, begun: Begun) -> Iterator[Metric]:
        step, at = self._step or (begun.start_step, None)
        yield from self._gauge("train_step", "Newest finished optimizer step of the run.", step)
        yield from self._gauge("train_target_step", "Step that the run is to reach.", begun.target)
        yield from self._gauge(
            "train_last_step_timestamp_seconds", "When the newest step was over, Unix time.", at
        )
        yield from self._gauge(
            "validation_loss", "Newest validation loss, nats per token.", self._validation_loss
        )
        seconds = HistogramMetricFamily(
            "smollm2_train_step_seconds",
            "Seconds of a step, without waiting for data, evaluating and saving.",
            labels=_LABELS,
        )
        bounds = (*map(str, _BUCKETS), "+Inf")
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        seconds.add_metric(self._labels, buckets, self._sum)
        yield seconds
        wall = self._now() - begun.run_begun
        yield from self._gauge(
            "goodput_ratio",
            "Share of the time since the first attempt that became steps which stayed.",
            min(1.0, (self._earlier_seconds + self._sum) / wall) if wall > 0 else None,
        )

    def _of_the_row(self, row: Row) -> Iterator[Metric]:
        yield from self._gauge("train_loss", "Loss of the newest row, nats per token.", row.loss)
        yield from self._gauge("train_learning_rate", "Learning rate.", row.learning_rate)
        yield from self._gauge(
            "train_gradient_norm", "Norm of the gradient, before clipping.", row.grad_norm
        )
        yield from self._counter("train_tokens", "Tokens that the run has trained on.", row.tokens)
        yield from self._gauge(
            "train_tokens_per_second", "Tokens per second.", row.tokens_per_second
        )
        mfu = GaugeMetricFamily(
            "smollm2_train_mfu_ratio",
            "Share of the device's peak, attention counted as causal or in full.",
            labels=(*_LABELS, "attention"),
        )
        if row.mfu is not None and row.mfu_full is not None:
            mfu.add_metric((*self._labels, "causal"), row.mfu)
            mfu.add_metric((*self._labels, "full"), row.mfu_full)
            yield mfu

    def _of_saving(self, saving: Saving) -> Iterator[Metric]:
        yield from self._gauge(
            "checkpoint_age_seconds",
            "Age of the newest checkpoint: what a kill would cost now.",
            saving.age,
        )
        newest = None if saving.age is None else saving.step
        yield from self._gauge("checkpoint_step", "Step of the newest checkpoint.", newest)
        yield from self._counter("checkpoint_saves", "Checkpoints committed.", saving.committed)
        yield from self._counter(
            "checkpoint_save_failures",
            "Tries to save that the store did not take.",
            saving.failures,
        )
        yield from self._gauge(
            "checkpoint_save_failures_in_a_row",
            "Tries that failed since the newest checkpoint.",
            saving.failures_in_a_row,
        )
        took = saving.commit if saving.committed else None
        yield from self._gauge(
            "checkpoint_commit_seconds", "Seconds that the last commit took.", took
        )
        yield from self._counter(
            "checkpoint_stall_seconds", "Seconds for which saves held training up.", saving.stall
        )

    def _of_the_ranks(self, begun: Begun) -> Iterator[Metric]:
        """Here `rank` is not the process that tells it, but the one that is told about."""
        family = GaugeMetricFamily(
            "smollm2_rank_step_seconds",
            "Seconds of a rank's own part of a step, without waiting for others.",
            labels=_LABELS,
        )
        for rank, seconds in enumerate(self._rank_seconds):
            family.add_metric((self._run, str(begun.attempt), str(rank)), seconds)
        if family.samples:
            yield family

    @property
    def _labels(self) -> tuple[str, str, str]:
        return self._run, str(self._begun.attempt if self._begun else ""), self._rank

    def _gauge(self, name: str, text: str, value: float | None) -> Iterator[Metric]:
        """Nothing for what is not known."""
        if value is not None:
            family = GaugeMetricFamily(f"smollm2_{name}", text, labels=_LABELS)
            family.add_metric(self._labels, value)
            yield family

    def _counter(self, name: str, text: str, value: float) -> Iterator[Metric]:
        family = CounterMetricFamily(f"smollm2_{name}", text, labels=_LABELS)
        family.add_metric(self._labels, value)
        yield family
