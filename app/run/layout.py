"""Every name below a run in the store: the one place that builds keys and reads names.

    run.json                                what the run is, and how far it is meant to go
    source.json                             what its data were made of
    inputs/                                 what the next image may not have: text, tokenizer
    lease.json                              who may write
    attempts/e000003-from-0000000040.json   attempt 3, which went on from step 40
    checkpoints/step-0000000020-e000001/    step 20, written under lease epoch 1
        …files…                             written first
        manifest.json                       sizes and SHA-256 of every file; makes it a checkpoint
    LATEST                                  written last: the name of the newest checkpoint
    quarantine/step-…-e…/                   a checkpoint that was set aside, and its reason.json
    logs/…                                  the numbers of the run
    report/index.html                       the page about the run

Beside the runs lies `_tokens`, which `app.data.token_cache` names: a run cannot have that name.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

RECORD = "run.json"
SOURCE = "source.json"
INPUTS = "inputs"
TEXT_KEY = f"{INPUTS}/builtin-text.json.z"
TOKENIZER_KEY = f"{INPUTS}/tokenizer.json.z"
LEASE = "lease.json"
ATTEMPTS = "attempts"
CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
LATEST = "LATEST"
QUARANTINE = "quarantine"
REASON = "reason.json"
METRICS_KEY = "logs/metrics.jsonl"
TENSORBOARD_KEY = "logs/tensorboard/events.out.tfevents.0"
REPORT_KEY = "report/index.html"

_CHECKPOINT = re.compile(r"step-(\d{10})-e(\d{6})")
_ATTEMPT = re.compile(r"e(\d{6})-from-(\d{10})\.json")


@dataclass(frozen=True, order=True)
class CheckpointName:
    """Orders as checkpoints do: by step, then by the epoch of the writer's lease."""

    step: int
    epoch: int

    @classmethod
    def parse(cls, text: str) -> "CheckpointName | None":
        match = _CHECKPOINT.fullmatch(text)
        return cls(int(match[1]), int(match[2])) if match else None

    def __str__(self) -> str:
        return f"step-{self.step:010d}-e{self.epoch:06d}"

    def key(self, file: str = "") -> str:
        """The key of a file of the checkpoint; without `file`, the prefix of all its keys."""
        return f"{CHECKPOINTS}/{self}/{file}"

    def quarantine_key(self, file: str = "") -> str:
        """As `key`, for a checkpoint that was set aside."""
        return f"{QUARANTINE}/{self}/{file}"


class AttemptName(NamedTuple):
    """The file of an attempt says the epoch of its lease, and the step that it went on from."""

    epoch: int
    start_step: int

    @classmethod
    def parse(cls, file: str) -> "AttemptName | None":
        match = _ATTEMPT.fullmatch(file)
        return cls(int(match[1]), int(match[2])) if match else None

    @property
    def key(self) -> str:
        return f"{ATTEMPTS}/e{self.epoch:06d}-from-{self.start_step:010d}.json"


def file_of(key: str) -> str:
    """The last part of a key."""
    return key.rsplit("/", 1)[1]
