"""What is shown of an attempt while it runs: rows of metrics, log lines, a bar, samples of text."""

import logging
import time
from dataclasses import dataclass

from tqdm import tqdm

from app.console import on_terminal, terminal_columns
from app.data.sample_order import BatchGeometry
from app.data.token_stream import TokenStream
from app.data.tokenizer import open_tokenizer
from app.generation.decoding import Sampling, generate_tokens
from app.generation.inference import InferenceModel
from app.model.smollm2 import SmolLM2, flops_per_token
from app.observe.metrics import MetricsLog
from app.observe.rows import Row, bar_format, perplexity, step_line
from app.observe.samples import SampleLog
from app.observe.tracking import Tracking
from app.training.checkpointing import Checkpointing
from app.training.compute import Compute
from app.training.step_clock import StepClock

log = logging.getLogger(__name__)

_NARROW = 40  # columns
_SAMPLE = Sampling(max_tokens=80)


@dataclass(eq=False)
class StepLog:
    """Shows each finished step of an attempt, up to the run's `target`.

    Each row says which attempt made it, by the `epoch` of its lease.
    """

    metrics: MetricsLog
    tracking: Tracking
    samples: SampleLog
    clock: StepClock
    checkpointing: Checkpointing
    compute: Compute
    geometry: BatchGeometry
    corpus: TokenStream
    target: int
    epoch: int
    _bar: "tqdm[None] | None" = None
    _row: Row | None = None  # the newest, for the bar

    def begin(self, step: int) -> None:
        """Training goes on after `step`. On a terminal a bar shows how far it is."""
        if on_terminal():
            self._bar = tqdm(total=self.target, initial=step, bar_format=" ")
            self._fit_bar()

    def advance(self, step: int) -> None:
        """A step is over."""
        self.metrics.step_done(step, self.clock.last_seconds)
        if self._bar is not None:
            self._fit_bar(1)
            self._bar.update()

    def close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def log_row(
        self,
        step: int,
        model: SmolLM2,
        loss: float,
        rate: float,
        grad_norm: float,
        evaluated: float | None,
    ) -> None:
        """Add one row to the metrics, and write its line to the log, or show it beside the bar.

        `evaluated` is the validation loss, if there is one. Losses are in nats per token.
        """
        geometry, saver = self.geometry, self.checkpointing.saver
        speed = self.clock.row(step, geometry.tokens_per_step)
        shape = model.config, geometry.seq_len
        row = Row(
            step=step,
            tokens=step * geometry.tokens_per_step,
            loss=loss,
            learning_rate=rate,
            grad_norm=grad_norm,
            tokens_per_second=speed,
            mfu=self.compute.utilization(speed * flops_per_token(*shape)),
            mfu_full=self.compute.utilization(speed * flops_per_token(*shape, causal=False)),
            validation_loss=evaluated,
            validation_perplexity=perplexity(evaluated),
            attempt=self.epoch,
            time=time.time(),
            checkpoint_age_seconds=self.checkpointing.age(),
            saves_committed=saver.saves_committed,
            failed_saves=saver.failed_saves,
        )
        self.metrics.add(row)
        self.tracking.add(row)
        text = step_line(row, self.target, self.clock.step_seconds)
        if self._bar is not None:
            self._row = row
            if evaluated is None:
                return
        log.info(text, extra={"fields": vars(row)})

    def _fit_bar(self, more: int = 0) -> None:
        """Fit the bar to the terminal, which may have another width by now, `more` steps on."""
        assert self._bar is not None
        columns = terminal_columns() or _NARROW  # it has gone away
        step, age = int(self._bar.n) + more, self.checkpointing.age()
        self._bar.ncols = columns - 1
        self._bar.bar_format = bar_format(
            self._row, step, self.target, self.clock.step_seconds, age, columns
        )

    def log_epoch(self, step: int) -> None:
        """Say if `step`, which was just made, began an epoch. An epoch may begin inside a step."""
        samples = self.geometry.global_batch_size
        first = (step - 1) * samples
        begun = self.corpus.order.epochs_begun(first, first + samples)
        if len(begun) == 1:
            log.info("epoch %d begins at step %d", begun[0] + 1, step)
        elif begun:
            log.info("epochs %d to %d begin at step %d", begun[0] + 1, begun[-1] + 1, step)

    def log_sample(self, step: int, model: SmolLM2) -> None:
        """Log a short text from the model as it is, without drawing from the run's generators."""
        files = self.corpus.tokenizer
        tokenizer = open_tokenizer(files.directory / "tokenizer.json")
        with self.compute.autocast():
            ids = list(generate_tokens(InferenceModel(model), [files.eos_token_id], _SAMPLE, None))
        text = tokenizer.decode(ids)
        self.samples.add(step, self.epoch, time.time(), text)
        log.info("sample at step %d: %r", step, text)
