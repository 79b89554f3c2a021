"""Every name below a run in the store: the one place that builds keys and reads names.

    run.json                                what the run is, and how far it is meant to go
    source.json                             what its data were made of
    inputs/                                 what the next image may not have: text, tokenizer
    lease.json                              who may write, and what that process is doing
    waiting.json                            what a start does that may not write yet
    attempts/e000003-from-0000000040-e000001.json   attempt 3, which went on from step 40 of epoch 1
    checkpoints/step-0000000020-e000001/    step 20, written under lease epoch 1
        …files…                             written first
        manifest.json                       sizes and SHA-256 of every file; makes it a checkpoint
    LATEST                                  written last: the name of the newest checkpoint
    quarantine/step-…-e…/                   a checkpoint that was set aside, and its reason.json
    logs/…                                  the numbers of the run
    evaluations/step-…-e…/<digest>.json     how good a checkpoint was found to be
    report/index.html                       the page about the run

Beside the runs lies `_tokens`, which `app.data.token_cache` names: a run cannot have that name.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

from app.stores.contract import RESERVED

RECORD = "run.json"
SOURCE = "source.json"
INPUTS = "inputs"
TEXT_KEY = f"{INPUTS}/builtin-text.json.z"
TOKENIZER_KEY = f"{INPUTS}/tokenizer.json.z"
LEASE = "lease.json"
WAITING = "waiting.json"
ATTEMPTS = "attempts"
CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
LATEST = "LATEST"
QUARANTINE = "quarantine"
REASON = "reason.json"
LOGS = "logs"
METRICS_KEY = f"{LOGS}/metrics.jsonl"
SAMPLES_KEY = f"{LOGS}/samples.jsonl"
TENSORBOARD_KEY = f"{LOGS}/tensorboard/events.out.tfevents.0"
EVALUATIONS = "evaluations"
REPORT = "report"
REPORT_KEY = f"{REPORT}/index.html"

HIGHEST_EPOCH = 10**12 - 1  # what the digits of a name can say

# Names have ten digits of a step and six of an epoch, and more only where these are not enough.
# So they are sorted by their numbers, never as text.
_CHECKPOINT = re.compile(r"step-([0-9]{10,12})-e([0-9]{6,12})")
_ATTEMPT = re.compile(r"e([0-9]{6,12})-from-([0-9]{10,12})(?:-e([0-9]{6,12}))?\.json")


@dataclass(frozen=True, order=True)
class CheckpointName:
    """Orders as checkpoints do: by step, then by the epoch of the writer's lease."""

    step: int
    epoch: int

    @classmethod
    def parse(cls, text: str) -> "CheckpointName | None":
        match = _CHECKPOINT.fullmatch(text)
        name = cls(int(match[1]), int(match[2])) if match else None
        return name if str(name) == text else None  # another spelling leads to no file

    def __str__(self) -> str:
        return f"step-{self.step:010d}-e{self.epoch:06d}"

    def key(self, file: str = "") -> str:
        """The key of a file of the checkpoint; without `file`, the prefix of all its keys."""
        return f"{CHECKPOINTS}/{self}/{file}"

    def quarantine_key(self, file: str = "") -> str:
        """As `key`, for a checkpoint that was set aside."""
        return f"{QUARANTINE}/{self}/{file}"

    @property
    def in_quarantine(self) -> "CheckpointName":
        """The name of the checkpoint where it lies once it was set aside, for reading it there."""
        return _Quarantined(self.step, self.epoch)


class _Quarantined(CheckpointName):
    def key(self, file: str = "") -> str:
        return self.quarantine_key(file)


class AttemptName(NamedTuple):
    """The file of an attempt says the epoch of its lease, and the checkpoint that it went on from.

    `resumed_epoch` is the epoch of that checkpoint. It is None for an attempt that went on from
    none, and for attempts of earlier versions, which did not write it.
    """

    epoch: int
    start_step: int
    resumed_epoch: int | None = None

    @classmethod
    def parse(cls, file: str) -> "AttemptName | None":
        match = _ATTEMPT.fullmatch(file)
        name = cls(*(int(part) for part in match.groups() if part)) if match else None
        return name if name and file_of(name.key) == file else None

    @property
    def key(self) -> str:
        origin = "" if self.resumed_epoch is None else f"-e{self.resumed_epoch:06d}"
        return f"{ATTEMPTS}/e{self.epoch:06d}-from-{self.start_step:010d}{origin}.json"


def evaluation_key(name: CheckpointName, digest: str) -> str:
    """The key of what was found out about a checkpoint; `digest` says what was measured."""
    return f"{EVALUATIONS}/{name}/{digest}.json"


def of_a_run(key: str) -> bool:
    """Whether `key` lies where a run keeps something, also what the store itself writes there."""
    first, _, rest = key.partition("/")
    if not rest:
        return first in (RECORD, SOURCE, LEASE, WAITING, LATEST) or first.startswith(RESERVED)
    if first in (CHECKPOINTS, QUARANTINE, EVALUATIONS):
        folder, _, file = rest.partition("/")
        return CheckpointName.parse(folder) is not None and bool(file)
    return first in (INPUTS, ATTEMPTS, LOGS, REPORT)


def file_of(key: str) -> str:
    """The last part of a key."""
    return key.rsplit("/", 1)[1]
