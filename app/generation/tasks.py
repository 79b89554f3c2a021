"""Downstream tasks, by EleutherAI's lm-evaluation-harness.

The harness has the questions, the prompts and the metrics. The model is given to it as one of
transformers, in memory: built by its Llama class from a shape that was judged, and from tensors.
So nothing that a checkpoint or a bucket holds is ever executed. What the harness may execute is
what the user of --task_path has written there.
"""

import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from app.console import on_terminal
from app.errors import ConfigError, NotFound
from app.failures import disk_failures
from app.generation.evaluated import Evaluated
from app.model.hub_failures import hub_failures
from app.observe.published import ARC_AVERAGE

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PACKAGE = "lm_eval"
_BOOTSTRAPS = 1_000  # for the standard errors that no formula gives

# What people call them, and what the harness does.
_SHORT: Mapping[str, Sequence[str]] = {
    "arc": ("arc_easy", "arc_challenge"),
    "lambada": ("lambada_openai",),
}


@dataclass(frozen=True)
class TaskSettings:
    """`include` is a folder with tasks of one's own. `limit` questions of each are asked, 0: all.

    `fewshot` examples stand before each question; None: what the task itself says, mostly none.
    """

    tasks: Sequence[str]
    include: Path | None = None
    limit: int = 0
    fewshot: int | None = None
    batch_size: int = 1


@dataclass(frozen=True)
class TaskResult:
    """One metric of one task; `samples` is the number of questions that were asked."""

    task: str
    metric: str
    value: float
    stderr: float | None
    samples: int
    fewshot: int
    version: str


def task_names(text: str) -> list[str]:
    """The tasks of the harness that a list with commas means, each once. Raises ConfigError."""
    words = [word.strip() for word in text.lower().split(",")]
    if not all(words):
        raise ConfigError(f"--tasks {text!r}: names of tasks with commas between them")
    return list(dict.fromkeys(name for word in words for name in _SHORT.get(word, (word,))))


def check_installed(how_to_install: str) -> None:
    """Raises ConfigError with the command that helps where the harness is not installed."""
    for package in (PACKAGE, "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"--tasks needs the package {package}, which is not installed: {how_to_install}"
            )


def run_tasks(
    evaluated: Evaluated,
    device: torch.device,
    wanted: TaskSettings,
    begins: Callable[[int], None] = lambda _: None,
) -> list[TaskResult]:
    """What the harness finds out. `begins` is told of the number of questions before the first.

    Raises NotFound for a task that there is not, ConfigError for one that cannot be used, and the
    hub's errors where its questions cannot be fetched.
    """
    _quiet()
    setting = f"--tasks {','.join(wanted.tasks)}"
    with hub_failures(setting):
        tasks = _loaded(wanted, setting)
    for task in tasks["tasks"].values():
        if wanted.fewshot is not None:
            task.set_config(key="num_fewshot", value=wanted.fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=1234)  # the harness's own choice: examples are the same ones
    from lm_eval.evaluator import evaluate

    begins(sum(_questions(task, wanted.limit) for task in tasks["tasks"].values()))
    found = evaluate(
        lm=_harness_model(evaluated, device, wanted.batch_size),
        task_dict=tasks,
        limit=wanted.limit or None,
        bootstrap_iters=_BOOTSTRAPS,
        log_samples=False,
    )
    return list(_results(found, tasks["tasks"]))


def transformers_model(evaluated: Evaluated, device: torch.device) -> "LlamaForCausalLM":
    """The same weights in transformers' own class, in float32."""
    from transformers import LlamaForCausalLM

    with disk_failures(str(evaluated.directory)):
        model: Any = LlamaForCausalLM.from_pretrained(
            evaluated.directory, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    return model.to(device).eval()


def arc_average(results: Iterable[TaskResult]) -> TaskResult | None:
    """The mean of both parts of ARC, as the card has it; None unless both were run."""
    found = {one.task: one for one in results if one.metric == "acc_norm"}
    easy, hard = found.get("arc_easy"), found.get("arc_challenge")
    if easy is None or hard is None:
        return None
    both = (easy.stderr, hard.stderr)
    stderr = None if None in both else 0.5 * sum(error**2 for error in both if error) ** 0.5
    return TaskResult(
        ARC_AVERAGE,
        "acc_norm",
        (easy.value + hard.value) / 2,
        stderr,
        easy.samples + hard.samples,
        easy.fewshot,
        easy.version,
    )


def _harness_model(evaluated: Evaluated, device: torch.device, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    class Model(HFLM):  # type: ignore[misc, unused-ignore]
        """Shows its bar on a terminal only."""

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return super().loglikelihood(requests, disable_tqdm or not on_terminal())

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return super().loglikelihood_rolling(requests, disable_tqdm or not on_terminal())

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return super().generate_until(requests, disable_tqdm or not on_terminal())

    return Model(
        pretrained=transformers_model(evaluated, device),
        tokenizer=_transformers_tokenizer(evaluated),
        batch_size=batch_size,
        max_length=evaluated.context,
        trust_remote_code=False,
    )


def _transformers_tokenizer(evaluated: Evaluated) -> "PreTrainedTokenizerFast":
    """From tokenizer.json alone: what else lies beside it may name a class to be imported."""
    from transformers import PreTrainedTokenizerFast

    path = evaluated.directory / "tokenizer.json"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
    end = tokenizer.convert_ids_to_tokens(evaluated.tokenizer.eos_token_id)
    tokenizer.eos_token = tokenizer.pad_token = end
    return tokenizer


def _loaded(wanted: TaskSettings, setting: str) -> Any:
    from lm_eval.tasks import TaskManager

    own = wanted.include and TaskManager(include_path=str(wanted.include), include_defaults=False)
    if own and set(wanted.tasks) <= set(own.all_tasks):  # to look through all of its own takes long
        return own.load(list(wanted.tasks))
    manager = TaskManager(include_path=str(wanted.include) if wanted.include else None)
    known = set(manager.all_tasks)
    for name in wanted.tasks:
        if name not in known:
            where = f"nor {wanted.include} " if wanted.include else ""
            raise NotFound(f"{setting}: neither lm_eval {where}knows a task {name!r}")
    return manager.load(list(wanted.tasks))


def _questions(task: Any, limit: int) -> int:
    n_questions = len(task.eval_docs)
    return min(n_questions, limit) if limit else n_questions


def _results(found: Any, tasks: Mapping[str, Any]) -> Iterator[TaskResult]:
    for name, metrics in found["results"].items():
        if name not in tasks:  # a group: its tasks are shown, one by one
            continue
        for key, value in metrics.items():
            metric, _, which = key.partition(",")
            if not which or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = metrics.get(f"{metric}_stderr,{which}")
            yield TaskResult(
                task=name,
                metric=metric if which == "none" else f"{metric} ({which})",
                value=float(value),
                stderr=float(stderr) if isinstance(stderr, int | float) else None,
                samples=int(found["n-samples"][name]["effective"]),
                fewshot=int(found["n-shot"].get(name) or 0),
                version=str(found["versions"].get(name, "")),
            )


def _quiet() -> None:
    """The harness says much that is no warning to those who evaluate, and others show bars."""
    from datasets import disable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    if not on_terminal():
        disable_progress_bars()
        disable_progress_bar()
    for name in ("lm_eval", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
