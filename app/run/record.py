"""run.json: what a run is, and how far it is meant to go.

The first attempt writes the record. After that, only extensions change it. Each change is a
conditional write, so that of two processes only one can make it.
"""

from dataclasses import dataclass

from app.errors import Fenced, IncompatibleRun, NotFound
from app.run.clock import utc_now
from app.run.layout import RECORD
from app.state.identity import RECORD_FORMAT, Extension, Identity, RunRecord, differences
from app.stores.contract import ReadableStore, Store
from app.stores.documents import decode_document, encode_document
from app.stores.swap import swap


@dataclass(frozen=True)
class StoredRecord:
    """A record and the version of the object that it was read from."""

    record: RunRecord
    etag: str


def load_record(store: ReadableStore) -> StoredRecord | None:
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
    found = list(differences(record.identity, identity, {"dataset": dataset_difference}))
    if found:
        raise IncompatibleRun(
            f"{where} holds a run that was made with other settings: {'; '.join(found)}. "
            "Set them back, or choose another RUN_NAME"
        )


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

    The run gets a new entry in the ledger, unless the ledger has one with this id. Without an id
    an unfinished run goes on to the target that is recorded already: nobody could tell the start
    that asks for more from the one that takes the place of a killed one. A run without a checkpoint
    does so too: its extension would be the trace of checkpoints that were lost. Raises Fenced if
    another process changed the record at the same moment.
    """
    record = stored.record
    if additional_steps == 0:
        return ExtensionOutcome(stored, None)
    request = f"ADDITIONAL_STEPS={additional_steps}"
    if note := already_applied(record, additional_steps, extension_id):
        return ExtensionOutcome(stored, note)
    if step < record.target and (extension_id is None or step == 0):
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
