"""run.json: what a run is, and how far it is meant to go.

The first attempt writes the record. After that, only extensions change it. Each change is a
conditional write, so that of two processes only one can make it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import normpath
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from app.errors import Fenced, IncompatibleRun, NotFound
from app.run.clock import utc_now
from app.run.layout import RECORD
from app.stores.contract import Store
from app.stores.documents import decode_document, encode_document
from app.stores.swap import swap

RECORD_FORMAT = 1

_SETTINGS = ("model", "seq_len", "global_batch_size", "seed", "init_from", "init", "optimizer")


class Identity(BaseModel):
    """What must not change during a run, under the names that users type."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    shape: dict[str, Any]
    dataset: str
    dataset_revision: str | None = None
    dataset_fingerprint: str
    tokenizer: str
    tokenizer_fingerprint: str
    seq_len: int
    global_batch_size: int
    seed: int
    init_from: str | None
    # The defaults are what runs had that were recorded before there was a choice.
    init: str = "normal"
    optimizer: str = "adamw"


class Extension(BaseModel):
    """One entry of the ledger: `base` was the target before, `target` is the one after."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str | None
    base: int
    target: int
    created_at: str


class RunRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    format_version: int = RECORD_FORMAT
    run_name: str
    created_at: str
    identity: Identity
    total_steps: int
    extensions: tuple[Extension, ...] = ()

    @property
    def target(self) -> int:
        """The step at which the run is finished."""
        return self.extensions[-1].target if self.extensions else self.total_steps

    @property
    def horizons(self) -> Sequence[int]:
        """Targets of the original run and of each extension, for the schedule."""
        return (self.total_steps, *(extension.target for extension in self.extensions))


@dataclass(frozen=True)
class StoredRecord:
    """A record and the version of the object that it was read from."""

    record: RunRecord
    etag: str


def load_record(store: Store) -> StoredRecord | None:
    """The run's record; None if there is none.

    Raises Damaged if it cannot be read, IncompatibleRun if a newer version wrote it.
    """
    try:
        content, etag = store.get(RECORD)
    except NotFound:
        return None
    place = f"{store.uri}/{RECORD}"
    record = decode_document(
        content,
        RunRecord,
        place,
        newest_format=RECORD_FORMAT,
        damaged=lambda what: (
            f"{place} is damaged ({what}): restore it from a backup, or choose another RUN_NAME; "
            "the job never starts from zero beside checkpoints"
        ),
    )
    return StoredRecord(record, etag)


def create_record(
    store: Store, run_name: str, identity: Identity, total_steps: int
) -> StoredRecord:
    """Write the first record of a run. Raises Fenced if another process just did."""
    record = RunRecord(
        run_name=run_name, created_at=utc_now(), identity=identity, total_steps=total_steps
    )
    etag = swap(store, RECORD, encode_document(record), None)
    if etag is None:
        raise Fenced(f"another process created {store.uri}/{RECORD} at the same moment")
    return StoredRecord(record, etag)


def same_dataset(record: RunRecord, identity: Identity) -> bool:
    return record.identity.dataset_fingerprint == identity.dataset_fingerprint


def check_identity(
    record: RunRecord, identity: Identity, where: str, dataset_difference: str = ""
) -> None:
    """Raises IncompatibleRun that lists every setting in which the run differs.

    `dataset_difference` says what changed in the data, where that is known.
    """
    recorded, ours = record.identity, identity
    differences = [
        f"{name.upper()} was {getattr(recorded, name)!r}, is {getattr(ours, name)!r}"
        for name in _SETTINGS
        if _differs(name, getattr(recorded, name), getattr(ours, name))
    ]
    if recorded.model == ours.model and recorded.shape != ours.shape:
        differences.append("the shape of the model is another one")
    for name in ("dataset", "tokenizer"):
        if getattr(recorded, f"{name}_fingerprint") != getattr(ours, f"{name}_fingerprint"):
            before, now = getattr(recorded, name), getattr(ours, name)
            change = (
                f"was {before!r}, is {now!r}" if before != now else f"{now!r} changed its content"
            )
            if name == "dataset" and dataset_difference:
                change += f" ({dataset_difference})"
            differences.append(f"{name.upper()} {change}")
    if differences:
        raise IncompatibleRun(
            f"{where} holds a run that was made with other settings: {'; '.join(differences)}. "
            "Set them back, or choose another RUN_NAME"
        )


def one_path(folder: str) -> str:
    """The absolute path of a folder, whichever way it was typed.

    A link is not followed: on the next node it may lead to another place with the same weights.
    """
    return normpath(Path(folder).absolute())


def _differs(name: str, before: Any, now: Any) -> bool:
    # Records of earlier versions hold a folder as it was typed.
    if name == "init_from" and before and now:
        return one_path(before) != one_path(now)
    return bool(before != now)


@dataclass(frozen=True)
class ExtensionOutcome:
    """The record after ADDITIONAL_STEPS was applied, and a sentence for the log, if any."""

    stored: StoredRecord
    note: str | None


def extend(
    store: Store,
    stored: StoredRecord,
    *,
    step: int,
    additional_steps: int,
    extension_id: str | None,
) -> ExtensionOutcome:
    """Apply ADDITIONAL_STEPS to a run that stands at `step`.

    A finished run gets a new entry in the ledger, unless the ledger has one with this id. An
    unfinished run goes on to the target that is recorded already. Raises Fenced if another
    process changed the record at the same moment.
    """
    record = stored.record
    if additional_steps == 0:
        return ExtensionOutcome(stored, None)
    request = f"ADDITIONAL_STEPS={additional_steps}"
    if note := already_applied(record, additional_steps, extension_id):
        return ExtensionOutcome(stored, note)
    if step < record.target:
        stage = "the extension" if record.extensions else "the original run"
        note = (
            f"{request}: {stage} is not finished, going on to its target, step {record.target}; "
            "the start after that one extends it"
        )
        return ExtensionOutcome(stored, note)
    extension = Extension(
        id=extension_id,
        base=record.target,
        target=record.target + additional_steps,
        created_at=utc_now(),
    )
    extended = record.model_copy(update={"extensions": (*record.extensions, extension)})
    etag = swap(store, RECORD, encode_document(extended), stored.etag)
    if etag is None:
        raise Fenced(f"another process changed {store.uri}/{RECORD} at the same moment")
    note = f"{request}: extended from step {extension.base} to step {extension.target}"
    return ExtensionOutcome(StoredRecord(extended, etag), note)


def already_applied(
    record: RunRecord, additional_steps: int, extension_id: str | None
) -> str | None:
    """A sentence about the extension if the ledger has it already, else None."""
    known = next((e for e in record.extensions if extension_id and e.id == extension_id), None)
    if known is None or additional_steps == 0:
        return None
    note = (
        f"ADDITIONAL_STEPS={additional_steps} (EXTENSION_ID={extension_id}) is applied already: "
        f"from step {known.base} to step {known.target}"
    )
    if known.target - known.base != additional_steps:
        note += "; for another one, set another EXTENSION_ID"
    return note
