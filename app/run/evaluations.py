"""How good a checkpoint was found to be: evaluations/step-…-e…/<which>.json in the store.

Results lie beside the checkpoints and not in their folders: a checkpoint is what its manifest
names, and stays that. So a result outlives its checkpoint, which retention may delete an hour
later. Such results are kept, since they are small, and the curve over all steps is what one looks
at. Each says by the SHA-256 of the weights what it is about.

No lease is needed to write one: nothing about the run is decided by it, and its name is made of
what was measured. The same evaluation of the same checkpoint replaces the one before.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from app.errors import Damaged, IncompatibleRun, NotFound, Unserved
from app.run.layout import EVALUATIONS, RECORD, CheckpointName, evaluation_key
from app.state.identity import HIGHEST_STEP
from app.stores.contract import ReadableStore, Store
from app.stores.documents import Document, decode_document, encode_document

EVALUATION_FORMAT = 1

_MOST_FILES = 1_000  # that are read of a run, newest steps first
_MOST_BYTES = 1 << 18  # of one of them
_MOST_METRICS = 200  # in one of them

_Short = Annotated[str, Field(max_length=200)]
_Long = Annotated[str, Field(max_length=10_000)]


class Evaluation(Document):
    """One number about one checkpoint.

    `weights` is the SHA-256 (hex) of its model.safetensors. `task` is "perplexity" or the name of
    a task of lm-evaluation-harness, `of` is the text or data set as it was typed. `stderr` is the
    standard error of `value`, `samples` what it was averaged over: tokens, or questions of a task.
    `settings` are those that change the number, `versions` those of the programs that made it.
    """

    step: int = Field(ge=0, le=HIGHEST_STEP)
    checkpoint: _Short
    weights: str = Field(pattern=r"^[0-9a-f]{64}$")
    task: _Short
    metric: _Short
    value: float
    stderr: float | None = None
    samples: int | None = Field(None, ge=0)
    of: _Long
    when: _Short
    settings: Annotated[dict[_Short, int | float | _Long], Field(max_length=50)] = Field(
        default_factory=dict
    )
    versions: Annotated[dict[_Short, _Short], Field(max_length=50)] = Field(default_factory=dict)


class _EvaluationFile(Document):
    """What one evaluation found: one task on one text, often in several metrics."""

    format_version: int = EVALUATION_FORMAT
    results: Annotated[tuple[Evaluation, ...], Field(min_length=1, max_length=_MOST_METRICS)]


@dataclass(frozen=True)
class Evaluations:
    """All that was found out about a run, by step, task, text and metric.

    `damaged` are files that cannot be read, as (key, reason). `left_out` counts those of the
    oldest steps that were not read, since there are too many.
    """

    found: Sequence[Evaluation] = ()
    damaged: Sequence[tuple[str, str]] = ()
    left_out: int = 0


def write_evaluation(store: Store, name: CheckpointName, results: Sequence[Evaluation]) -> str:
    """Keep the results of one task on one text for the checkpoint `name`. Returns the key.

    They have the same `task`, `of` and `settings`. Raises NotFound if the run is gone: a lone
    file would be in the way of the next run of its name. Raises the store's errors, AccessDenied
    for one that may only be read among them.
    """
    if store.etag(RECORD) is None:
        raise NotFound(f"{store.uri} holds no {RECORD}: the run is gone, nothing was written")
    first = results[0]
    what = json.dumps([first.task, first.of, first.settings], sort_keys=True)
    digest = hashlib.sha256(what.encode()).hexdigest()[:16]
    key = evaluation_key(name, digest)
    store.put(key, [encode_document(_EvaluationFile(results=tuple(results)))])
    return key


def evaluations_of(store: ReadableStore, most_files: int = _MOST_FILES) -> Evaluations:
    """What was found out about the checkpoints of the run, also those that are deleted by now.

    At most `most_files` files are read, those of the highest steps. A file that cannot be read is
    named in the result, and stops nothing. Raises the store's errors.
    """
    keys = sorted((info.key for info in store.list(EVALUATIONS)), key=_step_of, reverse=True)
    found: list[Evaluation] = []
    damaged: list[tuple[str, str]] = []
    for key in keys[:most_files]:
        try:
            content, _ = store.get(key, _MOST_BYTES)
            file = decode_document(content, _EvaluationFile, key, newest_format=EVALUATION_FORMAT)
            found += _checked(key, file)
        except NotFound:
            continue
        except (Damaged, IncompatibleRun, Unserved) as error:
            damaged.append((key, str(error)))
    found.sort(key=lambda one: (one.step, one.checkpoint, one.task, one.of, one.metric, one.when))
    return Evaluations(found, damaged, max(0, len(keys) - most_files))


def latest_values(results: Sequence[Evaluation]) -> Mapping[tuple[str, str, str], Evaluation]:
    """The result at the highest step for each (task, text, metric)."""
    return {(one.task, one.of, one.metric): one for one in sorted(results, key=lambda r: r.step)}


def _checked(key: str, file: _EvaluationFile) -> Sequence[Evaluation]:
    """Raises Damaged if a result is about another checkpoint than the key says."""
    name = CheckpointName.parse(key.split("/")[1])
    for one in file.results:
        if name is None or (one.checkpoint, one.step) != (str(name), name.step):
            raise Damaged(f"{key} has a result of another checkpoint")
    return file.results


def _step_of(key: str) -> tuple[int, str]:
    name = CheckpointName.parse(key.split("/")[1])
    return (name.step if name else -1, key)
