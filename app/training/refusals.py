"""Checks before a start writes anything: what is refused, and whether nothing is left to do."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch

from app.console import size
from app.data.data_dir import DataDir, own_folder
from app.data.sources import PinnedSource
from app.errors import ConfigError, Damaged, IncompatibleRun, NotFound, Unavailable, Unserved
from app.failures import disk_failures
from app.model.smollm2 import SmolLM2
from app.observe.metrics import check_logs
from app.observe.services import check_trackers
from app.run.checkpoints import check_sizes, read_manifest
from app.run.layout import LEASE, NODES, RECORD, WAITING
from app.run.record import check_identity, same_dataset
from app.run.recorded_source import difference
from app.run.retention import abandoned_writes
from app.run.verification import traces_of_checkpoints
from app.run.view import CheckpointState, RunView, read_view
from app.settings.combined import Settings
from app.settings.variables import Resume
from app.state.identity import RunRecord
from app.state.progress import MAX_STATE_BYTES, STATE_FILE, Progress, decode_progress
from app.state.snapshot import checkpoint_bytes
from app.state.weights import check_pretrained
from app.stores.contract import Store
from app.training.job import Job


def check_place(settings: Settings, store: Store) -> None:
    """Raises ConfigError where the run would lie in a working folder of DATA_DIR, or around one."""
    if not store.uri.startswith("file://"):
        return
    data_dir = DataDir(settings.data.data_dir)
    folder = data_dir.overlapped_by(Path(unquote(urlsplit(store.uri).path)))
    if folder is not None:
        raise ConfigError(
            f"CHECKPOINT_URI={settings.checkpoints.checkpoint_uri} with RUN_NAME="
            f"{store.uri.rsplit('/', 1)[1]} overlaps {folder}, where the job keeps and removes "
            f"working files of {data_dir.setting}: name another folder for the checkpoints, or "
            "another DATA_DIR"
        )


def check_space(job: Job, view: RunView, store: Store) -> None:
    """Raises Unavailable if not even one checkpoint fits into the store.

    What this start will remove as left over counts as free, and is told beside what is free now.
    """
    free = store.free_bytes()
    needed = checkpoint_bytes(job.config, job.settings.optimizer.optimizer)
    if free is None:
        return
    unfinished = CheckpointState.UNFINISHED
    left = sum(stored.size for stored in view.checkpoints if stored.state is unfinished)
    left += sum(half.size for half in abandoned_writes(store, view.highest_epoch + 1))
    if free + left < needed:
        more = f", {size(left)} more without what is left of broken uploads" if left else ""
        raise Unavailable(
            f"CHECKPOINT_URI: {store.uri} has {size(free)} free{more}, and a checkpoint of "
            f"{job.model_name} takes {size(needed)}: free some space, or name another place"
        )


def check_folders(job: Job, store: Store) -> None:
    """Raises AccessDenied, ConfigError or Unavailable where an attempt could not write its logs,
    or could not read a checkpoint into DATA_DIR."""
    settings = job.settings
    check_trackers(settings)
    data_dir = DataDir(settings.data.data_dir)
    with disk_failures(data_dir.setting), own_folder(data_dir.restore):
        pass
    check_logs(data_dir.logs(job.run_name, store.place), settings.logs.loggers, store.place)


def check_first_weights(job: Job, directory: Path) -> None:
    """Raises NotFound, Damaged or IncompatibleRun for an INIT_FROM that cannot be begun from."""
    with disk_failures(f"INIT_FROM={job.settings.model.init_from}"):
        check_pretrained(directory, SmolLM2.empty(job.config, torch.device("meta")))


def check_against_record(
    job: Job, view: RunView, source: PinnedSource | None, store: Store
) -> None:
    """Compare the job with the record of the run. Nothing is written.

    Without `source` everything but the content of the data is compared. Raises IncompatibleRun if
    the run was begun with other settings or data, ConfigError for another TOTAL_STEPS or for what
    RESUME does not allow, and Damaged if the store has lost the record or all checkpoints.
    """
    settings, stored = job.settings, view.record
    check_resume(settings.run.resume, view)
    if stored is None:
        if traces := _traces(view):
            repair = "make it again with `python -m app run repair`, " if view.committed else ""
            raise Damaged(
                f"{store.uri} holds {traces[0]}, but no run.json: {repair}restore it from a "
                "backup, or choose another RUN_NAME to start again"
            )
        return
    if not view.committed:
        _check_fresh_start(view, store)
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


def _traces(view: RunView) -> list[str]:
    """What is there of the run. A start writes the lease first, then the record, then the rest.
    What it tells before that, of itself and to other nodes, is no part of the run."""
    return sorted(set(view.objects) - {LEASE, WAITING, NODES})


def check_resume(resume: Resume, view: RunView) -> None:
    """Raises ConfigError for what RESUME does not allow."""
    if resume == "must" and not view.committed:
        raise ConfigError(
            f"RESUME=must, but {view.uri} holds no checkpoint to go on from: check that the volume "
            "is mounted, CHECKPOINT_URI and RUN_NAME; RESUME=auto would start a new run"
        )
    if resume == "never" and (traces := _traces(view)):
        raise ConfigError(
            f"RESUME=never, but {view.uri} is not empty: it holds {traces[0]}. Choose another "
            "RUN_NAME, or RESUME=auto to go on with that run"
        )


def _check_fresh_start(view: RunView, store: Store) -> None:
    """Raises Damaged if the run had checkpoints and none of them is left to go on from."""
    if view.late:
        newest = view.late[0]
        raise Damaged(
            f"{view.uri}: each checkpoint is late, which means that a later attempt went on from "
            "an earlier step, as it does where checkpoints are put back from a backup. `python -m "
            f"app checkpoints accept {newest}` lets the run go on from the newest; or choose "
            "another RUN_NAME to start again"
        )
    if view.of_state(CheckpointState.LOST_MANIFEST):
        return  # loading names everything that is damaged
    traces = traces_of_checkpoints(store, view)
    # Another process may have made its first checkpoint since the view was read.
    if traces and not read_view(store).committed:
        raise Damaged(
            f"{view.uri} has lost its checkpoints: {'; '.join(traces)}, but no checkpoint is left. "
            "Restore one from a backup, or from quarantine with `python -m app checkpoints "
            "accept`; or choose another RUN_NAME to start again"
        )


def check_ledger(record: RunRecord, progress: Progress, store: Store) -> None:
    """Raises IncompatibleRun if a checkpoint knows extensions that run.json does not."""
    if progress.run and progress.run.target > record.target:
        raise IncompatibleRun(
            f"{store.uri}/{RECORD} is older than the checkpoints: it says target step "
            f"{record.target}, and step {progress.step} was made for target step "
            f"{progress.run.target}. `python -m app run repair` makes it again from there"
        )


def nothing_left_to_do(job: Job, record: RunRecord, view: RunView, store: Store) -> bool:
    """Whether this start has nothing to do. Reads only.

    Of the newest checkpoint, manifest, sizes and state.json are looked at; every byte is what
    `checkpoints verify` is for.
    """
    run = job.settings.run
    applied = any(run.extension_id and e.id == run.extension_id for e in record.extensions)
    if run.additional_steps and not applied:
        return False
    if view.newest_step < record.target:
        return False
    newest = view.committed[0]
    try:
        check_sizes(store, newest, read_manifest(store, newest))
        content, _ = store.get(newest.key(STATE_FILE), MAX_STATE_BYTES)
        progress = decode_progress(content)
        progress.check(newest.step, record)
        if progress.run and progress.run.target > record.target:
            return False  # run.json is an older one: the start says so
    except (Damaged, NotFound, Unserved):
        return False  # the start sets the checkpoint aside, or passes it over, and makes its steps
    return True
