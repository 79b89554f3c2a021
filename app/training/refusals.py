"""Checks before a start writes anything: what is refused, and whether nothing is left to do."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from app.console import size
from app.data.data_dir import DataDir
from app.data.sources import PinnedSource
from app.errors import ConfigError, Damaged, NotFound, Unavailable
from app.run.checkpoints import check_sizes, highest_epoch, read_manifest, stored_checkpoints
from app.run.layout import LEASE
from app.run.record import StoredRecord, check_identity, load_record, same_dataset
from app.run.recorded_source import difference
from app.run.retention import abandoned_writes, unfinished
from app.run.verification import proof_of_checkpoints
from app.state.identity import RunRecord
from app.state.progress import MAX_STATE_BYTES, STATE_FILE, decode_progress
from app.state.snapshot import checkpoint_bytes
from app.stores.contract import Store
from app.training.job import Job


def check_place(job: Job, store: Store) -> None:
    """Raises ConfigError where the run would lie in a working folder of DATA_DIR, or around one."""
    if not store.uri.startswith("file://"):
        return
    data_dir = DataDir(job.settings.data.data_dir)
    folder = data_dir.overlapped_by(Path(unquote(urlsplit(store.uri).path)))
    if folder is not None:
        raise ConfigError(
            f"CHECKPOINT_URI={job.settings.checkpoints.checkpoint_uri} with RUN_NAME="
            f"{job.run_name} overlaps {folder}, where the job keeps and removes working files of "
            f"{data_dir.setting}: name another folder for the checkpoints, or another DATA_DIR"
        )


def check_space(job: Job, store: Store) -> None:
    """Raises Unavailable if not even one checkpoint fits into the store.

    What this start will remove as left over counts as free.
    """
    free = store.free_bytes()
    needed = checkpoint_bytes(job.config, job.settings.optimizer.optimizer)
    if free is None:
        return
    free += sum(sum(stored.sizes.values()) for stored in unfinished(store))
    free += sum(half.size for half in abandoned_writes(store, highest_epoch(store) + 1))
    if free < needed:
        raise Unavailable(
            f"CHECKPOINT_URI: {store.uri} has {size(free)} free, and a checkpoint of "
            f"{job.model_name} takes {size(needed)}: free some space, or name another place"
        )


def check_against_record(
    job: Job, stored: StoredRecord | None, source: PinnedSource | None, store: Store
) -> None:
    """Compare the job with the record of the run. Nothing is written.

    Without `source` everything but the content of the data is compared. Raises IncompatibleRun if
    the run was begun with other settings or data, ConfigError for another TOTAL_STEPS, and
    Damaged if the store has lost the record or all checkpoints.
    """
    settings = job.settings
    committed = any(checkpoint.committed for checkpoint in stored_checkpoints(store))
    if stored is None:
        # A start writes the lease first, then the record, and everything else later.
        traces = (info.key for info in store.list("") if info.key != LEASE)
        # Another process may have made the record since this one looked for it.
        if (trace := next(traces, None)) and load_record(store) is None:
            repair = "make it again with `python -m app run repair`, " if committed else ""
            raise Damaged(
                f"{store.uri} holds {trace}, but no run.json: {repair}restore it from a backup, or "
                "choose another RUN_NAME to start again"
            )
        return
    if not committed and (proof := proof_of_checkpoints(stored.record, store)):
        raise Damaged(
            f"{store.uri}/{proof}, but no checkpoint is left: restore one from a backup, or "
            "choose another RUN_NAME to start again"
        )
    recorded, changed = stored.record.identity, ""
    identity = job.identity(recorded.dataset_revision, recorded.dataset_fingerprint)
    if source is not None:
        identity = job.identity(source.revision, source.fingerprint)
        if not same_dataset(stored.record, identity):
            changed = difference(store, source.parts)
    check_identity(stored.record, identity, store.uri, changed)
    total = settings.run.total_steps
    if not settings.is_default("TOTAL_STEPS") and total != stored.record.total_steps:
        raise ConfigError(
            f"TOTAL_STEPS={total}, but {store.uri} was started with "
            f"TOTAL_STEPS={stored.record.total_steps}, which its learning rates follow: set "
            "it back, extend a finished run with ADDITIONAL_STEPS, or choose another RUN_NAME"
        )


def nothing_left_to_do(job: Job, record: RunRecord, store: Store) -> bool:
    """Whether this start has nothing to do. Reads only.

    Of the newest checkpoint, manifest, sizes and state.json are looked at; every byte is what
    `checkpoints verify` is for.
    """
    run = job.settings.run
    applied = any(run.extension_id and e.id == run.extension_id for e in record.extensions)
    if run.additional_steps and not applied:
        return False
    newest = next((c for c in stored_checkpoints(store) if c.committed), None)
    if newest is None or newest.name.step < record.target:
        return False
    try:
        check_sizes(store, newest.name, read_manifest(store, newest.name))
        content, _ = store.get(newest.name.key(STATE_FILE), MAX_STATE_BYTES)
        decode_progress(content).check(newest.name.step, record)
    except (Damaged, NotFound):
        return False  # the start will set the checkpoint aside and make its steps again
    return True
