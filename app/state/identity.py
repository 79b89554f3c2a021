"""What a run is, and how far it is meant to go: what run.json says, and each checkpoint again.

A checkpoint that says so can be told from one of another run, and run.json can be made again from
it.
"""

from collections.abc import Iterator, Mapping, Sequence
from os.path import normpath
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from app.settings.presets import ModelConfig
from app.stores.documents import Document, Part

RECORD_FORMAT = 1
HIGHEST_STEP = 10**12 - 1  # what the digits in the name of a checkpoint can say

_SETTINGS = ("model", "seq_len", "global_batch_size", "seed", "init_from", "init", "optimizer")
_MOST_EXTENSIONS = 10_000

_Step = Annotated[int, Field(ge=1, le=HIGHEST_STEP)]
_Name = Annotated[str, Field(max_length=100_000)]
_Short = Annotated[str, Field(max_length=200)]
_Number = Annotated[int | float, Field(ge=0, le=1e12)]


class Identity(Part):
    """What must not change during a run, under the names that users type.

    `init_weights` is the SHA-256 (hex) of the weights in INIT_FROM; None without INIT_FROM, and in
    records of versions that did not know it.
    """

    model: _Name
    shape: Annotated[dict[_Short, _Number], Field(max_length=100)]
    dataset: _Name
    dataset_revision: _Short | None = None
    dataset_fingerprint: _Short
    tokenizer: _Name
    tokenizer_fingerprint: _Short
    seq_len: int = Field(ge=1, le=2**31)
    global_batch_size: int = Field(ge=1, le=2**31)
    seed: int = Field(ge=0, lt=2**63)
    init_from: _Name | None
    init_weights: _Short | None = Field(None, exclude_if=lambda digest: digest is None)
    # The defaults are what runs had that were recorded before there was a choice.
    init: _Short = "normal"
    optimizer: _Short = "adamw"

    @property
    def config(self) -> ModelConfig | None:
        """The shape as a model's; None where it is none."""
        try:
            config = TypeAdapter(ModelConfig).validate_python(self.shape)
            return config if config.parameter_count > 0 else None
        except (ValidationError, ZeroDivisionError):
            return None


class Extension(Part):
    """One entry of the ledger: `base` was the target before, `target` is the one after."""

    id: _Short | None
    base: _Step
    target: _Step
    created_at: _Short


class RunRecord(Document):
    """run.json."""

    format_version: int = RECORD_FORMAT
    run_name: _Short
    created_at: _Short
    identity: Identity
    total_steps: _Step
    extensions: Annotated[tuple[Extension, ...], Field(max_length=_MOST_EXTENSIONS)] = ()

    @model_validator(mode="after")
    def _goes_up(self) -> "RunRecord":
        for target, extension in zip(self.horizons, self.extensions, strict=False):
            if extension.base != target or extension.target <= target:
                raise ValueError(f"an extension from {extension.base} to {extension.target}")
        return self

    @property
    def target(self) -> int:
        """The step at which the run is finished."""
        return self.extensions[-1].target if self.extensions else self.total_steps

    @property
    def horizons(self) -> Sequence[int]:
        """Targets of the original run and of each extension, for the schedule."""
        return (self.total_steps, *(extension.target for extension in self.extensions))


def differences(
    recorded: Identity, ours: Identity, changes: Mapping[str, str] | None = None
) -> Iterator[str]:
    """A phrase for each setting in which two runs differ.

    `changes` says for "dataset" or "tokenizer" what changed in it, where that is known.
    """
    for name in _SETTINGS:
        before, now = getattr(recorded, name), getattr(ours, name)
        if name == "init_from":
            yield from _other_weights(recorded, ours)
        elif before != now:
            yield f"{name.upper()} was {before!r}, is {now!r}"
    if recorded.model == ours.model and recorded.shape != ours.shape:
        yield "the shape of the model is another one"
    for name in ("dataset", "tokenizer"):
        if getattr(recorded, f"{name}_fingerprint") != getattr(ours, f"{name}_fingerprint"):
            before, now = getattr(recorded, name), getattr(ours, name)
            phrase = (
                f"was {before!r}, is {now!r}" if before != now else f"{now!r} changed its content"
            )
            what = (changes or {}).get(name)
            yield f"{name.upper()} {phrase}{f' ({what})' if what else ''}"


def one_path(folder: str) -> str:
    """The absolute path of a folder, whichever way it was typed.

    A link is not followed: on the next node it may lead to another place with the same weights.
    """
    return normpath(Path(folder).absolute())


def same_place(before: str | None, now: str | None) -> bool:
    """Whether two values of INIT_FROM are the same. Early records hold a folder as typed."""
    return before == now or bool(before and now and one_path(before) == one_path(now))


def _other_weights(recorded: Identity, ours: Identity) -> Iterator[str]:
    before, now = recorded.init_from, ours.init_from
    if recorded.init_weights and ours.init_weights:
        if recorded.init_weights == ours.init_weights:
            return  # the same weights, wherever they lie
        if same_place(before, now):
            yield f"INIT_FROM {now!r} changed its weights"
            return
    if not same_place(before, now):
        yield f"INIT_FROM was {before!r}, is {now!r}"
