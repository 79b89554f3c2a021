"""`evaluate`: how good a checkpoint is, on a text and at the tasks of lm-evaluation-harness."""

import argparse
import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from typing import TYPE_CHECKING

from tqdm import tqdm

from app import __version__
from app.cli.arguments import Commands, count_from, place
from app.cli.chosen_step import add_step
from app.cli.named_run import existing_run, scratch_folder
from app.cli.tables import add_json, show_json, show_table
from app.cli.tracking import bring_up_to_date
from app.console import counted, on_terminal
from app.data.data_dir import DataDir
from app.errors import AccessDenied, Cancelled, ConfigError, Unavailable, UsageError
from app.observe.published import SOURCE, published
from app.observe.tracking import Measured
from app.printable import show
from app.run.clock import utc_now
from app.run.evaluations import Evaluation, write_evaluation
from app.run.record import load_record
from app.settings.calling import how_to_install
from app.settings.combined import Settings
from app.settings.variables import DataSettings
from app.stores.contract import Store
from app.training.preemption import Interrupted, StopRequest

if TYPE_CHECKING:  # their libraries take seconds to load
    import torch

    from app.generation.evaluated import Evaluated

log = logging.getLogger(__name__)

PERPLEXITY = "perplexity"
_HARNESS = "lm-evaluation-harness"
_LINE_EVERY = 30.0  # seconds, where no terminal shows a bar
_TOKENS_AT_ONCE = {"cuda": 16_384}  # of a text; elsewhere:
_FEW_TOKENS = 2_048
_QUESTIONS_AT_ONCE = {"cuda": 16}
_FEW_QUESTIONS = 4
_MOST = 10**12


def add_commands(commands: Commands) -> None:
    command = commands.add("evaluate", evaluate, "measure a checkpoint: perplexity, and tasks")
    add_step(command, "the newest")
    command.add_argument(
        "--model_dir", metavar="DIR", help="a Hugging Face directory or hub id instead"
    )
    text = command.add_argument_group("perplexity")
    text.add_argument(
        "--text",
        metavar="DATASET",
        help="the text, written as DATASET is; default, without --tasks: what DATASET holds out",
    )
    text.add_argument(
        "--held_out", action="store_true", help="of --text only what training on it holds out"
    )
    text.add_argument(
        "--tokens",
        type=count_from(1, _MOST),
        default=100_000,
        help="to stop after; default: 100,000",
    )
    text.add_argument(
        "--window", type=count_from(2), help="tokens read at once; default: SEQ_LEN of the run"
    )
    text.add_argument(
        "--stride", type=count_from(1), help="tokens from window to window; default: half of one"
    )
    tasks = command.add_argument_group("tasks")
    tasks.add_argument(
        "--tasks", help=f"hellaswag, arc, piqa, lambada, or any other of {_HARNESS}; with commas"
    )
    tasks.add_argument(
        "--task_path", type=place, metavar="DIR", help="a folder with tasks of one's own"
    )
    tasks.add_argument(
        "--limit", type=count_from(1, _MOST), default=0, help="questions of each; default: all"
    )
    tasks.add_argument("--fewshot", type=count_from(0, 100), help="examples before each question")
    command.add_argument(
        "--no_save", "--no-save", action="store_true", help="do not keep the results in the store"
    )
    add_json(command)


def evaluate(settings: Settings, arguments: argparse.Namespace, stop: StopRequest) -> None:
    """Raises UsageError for flags that do not go together, ConfigError for what cannot be
    evaluated, and the store's errors. No lease is taken: the run may be in training."""
    _check(arguments, settings)
    DataDir(settings.data.data_dir).take_temporary_files()
    try:
        _evaluate(settings, arguments, stop)
    except Interrupted as end:
        if end.number != signal.SIGINT:
            raise
        stop.taken()
        raise Cancelled("stopped: what was not finished is not kept") from end


def _check(arguments: argparse.Namespace, settings: Settings) -> None:
    if arguments.model_dir and arguments.step:
        raise UsageError("--model_dir and --step name two models: leave one of them out")
    if arguments.window and arguments.stride and arguments.stride > arguments.window:
        raise UsageError(
            f"--stride {arguments.stride} is longer than --window {arguments.window}: tokens "
            "between two windows would be left out"
        )
    if arguments.tasks:
        from app.generation.tasks import check_installed, task_names

        task_names(arguments.tasks)
        check_installed(how_to_install("evaluation", settings.logs.started_by))


def _evaluate(settings: Settings, arguments: argparse.Namespace, stop: StopRequest) -> None:
    from app.generation.evaluated import evaluated_checkpoint, evaluated_directory
    from app.model.device import resolve_device

    device = resolve_device(settings.compute.device)
    with scratch_folder(settings) as scratch:
        store = None if arguments.model_dir else existing_run(settings)
        subject = (
            evaluated_directory(arguments.model_dir)
            if store is None
            else evaluated_checkpoint(store, arguments.step or "latest", scratch)
        )
        log.info("model %s, on %s", subject.origin, device)
        made = _Measuring(settings, arguments, store, subject, device)
        results: list[Evaluation] = []
        if arguments.text or not arguments.tasks:
            results += made.perplexity()
        if arguments.tasks:
            results += made.tasks()
    _show(results, arguments.json)
    if store is not None and not arguments.no_save:
        _save(store, subject, results)
        _tell_trackers(settings, store, stop, results)


@dataclass(frozen=True)
class _Measuring:
    settings: Settings
    arguments: argparse.Namespace
    store: Store | None
    subject: "Evaluated"
    device: "torch.device"

    def perplexity(self) -> Sequence[Evaluation]:
        from app.data.sources import follows_the_image, pin_source
        from app.data.tokenizer import TextEncoder
        from app.generation.perplexity import Windows, read_documents, text_loss
        from app.run.kept_inputs import read_text

        arguments, subject = self.arguments, self.subject
        length = arguments.window or subject.context
        if length > subject.config.max_position_embeddings:
            most = subject.config.max_position_embeddings
            raise ConfigError(f"--window {length}: the model has a context of {most} tokens")
        windows = Windows(length, min(arguments.stride or max(1, length // 2), length))
        data, only_held_out = self._data()
        builtin = read_text(self.store) if self.store and follows_the_image(data) else None
        pieces = pin_source(data, builtin=builtin).pieces()
        of = f"{data.dataset} (held out)" if only_held_out else data.dataset
        with _progress(f"text {of}", arguments.tokens) as done:
            loss = text_loss(
                subject.model(self.device),
                read_documents(
                    pieces,
                    TextEncoder(subject.tokenizer),
                    arguments.tokens,
                    only_held_out=only_held_out,
                ),
                subject.tokenizer.eos_token_id,
                windows,
                _TOKENS_AT_ONCE.get(self.device.type, _FEW_TOKENS),
                done,
            )
        pieces.close()
        settings: dict[str, int | float | str] = {
            "window": windows.length,
            "stride": windows.stride,
            "tokens": arguments.tokens,
        }
        values = {
            PERPLEXITY: loss.perplexity,
            "bits_per_byte": loss.bits_per_byte,
            "loss": loss.loss,
        }
        return [
            self._result(PERPLEXITY, metric, value, of, settings, samples=loss.tokens)
            for metric, value in values.items()
        ]

    def _data(self) -> tuple[DataSettings, bool]:
        """What is read, and whether only what training holds out of it."""
        data = self.settings.data
        if self.arguments.text:
            update = {"dataset": self.arguments.text}
            return data.model_copy(update=update), self.arguments.held_out
        stored = load_record(self.store) if self.store else None
        if stored and self.settings.is_default("DATASET"):
            data = data.model_copy(update={"dataset": stored.record.identity.dataset})
        return data, True

    def tasks(self) -> Sequence[Evaluation]:
        from app.generation.tasks import (
            PACKAGE,
            TaskSettings,
            arc_average,
            run_tasks,
            task_names,
        )

        arguments = self.arguments
        at_once = _QUESTIONS_AT_ONCE.get(self.device.type, _FEW_QUESTIONS)
        wanted = TaskSettings(
            task_names(arguments.tasks),
            arguments.task_path,
            arguments.limit,
            arguments.fewshot,
            at_once if self.settings.is_default("BATCH_SIZE") else self.settings.batch.batch_size,
        )
        found = run_tasks(
            self.subject,
            self.device,
            wanted,
            lambda number: log.info("%s of %s", counted(number, "question"), arguments.tasks),
        )
        if (both := arc_average(found)) is not None:
            found.append(both)
        of = f"{_HARNESS}, {arguments.task_path}" if arguments.task_path else _HARNESS
        packages = {name: version(name) for name in (PACKAGE, "transformers")}
        return [
            self._result(
                one.task,
                one.metric,
                one.value,
                of,
                {"limit": arguments.limit, "fewshot": one.fewshot, "task_version": one.version},
                one.stderr,
                one.samples,
                packages,
            )
            for one in found
        ]

    def _result(
        self,
        task: str,
        metric: str,
        value: float,
        of: str,
        settings: dict[str, int | float | str],
        stderr: float | None = None,
        samples: int | None = None,
        packages: dict[str, str] | None = None,
    ) -> Evaluation:
        name = self.subject.name
        return Evaluation(
            step=name.step if name else 0,
            checkpoint=str(name or ""),
            weights=self.subject.weights,
            task=task,
            metric=metric,
            value=value,
            stderr=stderr,
            samples=samples,
            of=of,
            when=utc_now(),
            settings=settings,
            versions={"app": __version__, "torch": version("torch"), **(packages or {})},
        )


def _show(results: Sequence[Evaluation], as_json: bool) -> None:
    if as_json:
        show_json(
            {
                "results": [
                    {**one.model_dump(), "published": published(one.task, one.metric)}
                    for one in results
                ],
                "published_source": SOURCE,
            }
        )
        return
    rows, beside = [], any(published(one.task, one.metric) is not None for one in results)
    for one in results:
        there = published(one.task, one.metric)
        row = [
            one.task,
            one.metric,
            f"{one.value:,.4f}",
            "" if one.stderr is None else f"± {one.stderr:.4f}",
            f"{one.samples:,}" if one.samples is not None else "",
        ]
        rows.append([*row, "" if there is None else f"{there:.3f}"] if beside else row)
    columns = ["task", "metric", "value", "stderr", "samples", "SmolLM2-135M"]
    show_table(columns if beside else columns[:-1], rows, columns[2:])
    show(f"step {results[0].step}; of {'; '.join(dict.fromkeys(one.of for one in results))}")
    if beside:
        show(f"SmolLM2-135M: {SOURCE}, so other prompts than here")


def _save(store: Store, subject: "Evaluated", results: Sequence[Evaluation]) -> None:
    assert subject.name is not None
    try:
        for _, same in groupby(results, key=lambda one: (one.task, one.of)):
            key = write_evaluation(store, subject.name, list(same))
            log.info("kept as %s/%s", store.uri, key)
    except AccessDenied as error:
        raise AccessDenied(
            f"{error}: the results are above; --no_save asks for no write"
        ) from error


def _tell_trackers(
    settings: Settings, store: Store, stop: StopRequest, results: Sequence[Evaluation]
) -> None:
    """Those that LOGGERS names over a network. While the run is in training they are not told here,
    since only who holds the run tells them: the result lies in the store."""
    values = {f"{one.task}/{one.metric}": one.value for one in results}
    try:
        bring_up_to_date(settings, store, stop, [Measured(results[0].step, time.time(), values)])
    except Unavailable as error:
        log.warning("the trackers were not told of these results: %s", error)


@contextmanager
def _progress(what: str, most: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, which may end early, and a line now and then where there is none."""
    log.info("%s: up to %s tokens", what, f"{most:,}")
    if on_terminal():
        with tqdm(total=most, unit=" tokens", unit_scale=True, leave=False) as bar:
            yield lambda number: bar.update(number) and None
        return
    said, reached, began = time.monotonic(), 0, time.monotonic()

    def done(number: int) -> None:
        nonlocal said, reached
        reached += number
        now = time.monotonic()
        if now - said > _LINE_EVERY:
            said = now
            log.info("%s tokens, %.0f tokens/s", f"{reached:,}", reached / (now - began))

    yield done
