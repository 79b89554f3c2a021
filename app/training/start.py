"""From settings to an attempt that is ready to train, or to the news that nothing is left to do.

The order matters. Everything that can be refused is refused before anything is written to the
store: first the settings, then the device, the store, the run's identity and the data. Only then
does this process take the lease. Under it, it reads again what the store says, since another
process may have written in the meantime.
"""

import gc
import logging
from dataclasses import replace

from app.console import redacted
from app.data.sources import PinnedSource
from app.data.token_progress import TokenProgress
from app.data.token_stream import OutOfData, TokenStream
from app.errors import AppError, Preempted
from app.heartbeat import beat
from app.model.attention import AttentionShape, fastest_attention
from app.run.checkpoints import highest_epoch, stored_checkpoints
from app.run.kept_inputs import tokenizer_of_run
from app.run.lease import Lease, holder_identity
from app.run.record import StoredRecord, already_applied, load_record
from app.run.recorded_source import names_recorded_data, source_of_run
from app.settings.combined import Settings
from app.stores.contract import Store
from app.stores.opening import open_store
from app.training.attempt import Attempt, Trainer
from app.training.held_run import HeldRun
from app.training.job import Job, resolve_job
from app.training.opening import open_under_lease
from app.training.preemption import NOTHING_TO_SAVE, GracePeriod, Interrupted, StopRequest
from app.training.refusals import check_against_record, check_place, check_space, nothing_left_to_do
from app.training.training_data import check_data, open_preparation

log = logging.getLogger(__name__)


def run(settings: Settings, stop: StopRequest) -> None:
    """Train, and return once the target is reached. Raises an AppError for every other end."""
    trainer = _trainer(settings.run.trainer)
    attempt = open_attempt(settings, stop)
    if attempt is None:
        return
    why = f"exit {Preempted.exit_code}: {NOTHING_TO_SAVE}"
    try:
        attempt.finish(failure=_train(trainer, attempt))
        why = "target reached"
    except AppError as error:
        why = f"exit {error.exit_code}: {redacted(str(error))}"
        raise
    except Interrupted:
        raise
    except BaseException as error:
        why = f"{type(error).__name__}: {redacted(str(error))}"
        raise
    finally:
        stop.taken()  # no further interruption: closing keeps to GRACE_SECONDS by itself
        attempt.close(why)


def _train(trainer: Trainer, attempt: Attempt) -> BaseException | None:
    """Train. If it ended because no more data came, return the error behind that."""
    gc.collect()
    gc.freeze()  # so that no collection in the loop walks through all imported modules
    try:
        with fastest_attention(
            attempt.compute.device,
            AttentionShape(
                attempt.model.config,
                attempt.geometry.batch_size,
                attempt.geometry.seq_len,
                attempt.compute.dtype,
            ),
            masked=attempt.sections.data.document_mask,
        ):
            trainer(attempt)
    except OutOfData as end:
        return end.__cause__
    finally:
        gc.unfreeze()
    return None


def open_attempt(settings: Settings, stop: StopRequest) -> Attempt | None:
    """An attempt with its state restored, or None if the run is finished."""
    beat()
    job = resolve_job(settings)
    store = open_store(settings.checkpoints.checkpoint_uri, job.run_name)
    check_place(job, store)
    store.check()
    stored = load_record(store)
    record = stored.record if stored else None
    job = replace(job, tokenizer=tokenizer_of_run(settings.data, record, store, job.tokenizer))
    progress = TokenProgress()
    if stored is not None and nothing_left_to_do(job, stored.record, store):
        # The data may be gone by now: they are looked at only if DATASET names others than before.
        named = names_recorded_data(settings.data, stored.record)
        source = None if named else source_of_run(settings.data, record, store, progress.alive)
        check_against_record(job, stored, source, store)
        run = settings.run
        if note := already_applied(stored.record, run.additional_steps, run.extension_id):
            log.info(note)
        log.info(
            "nothing to do: %s is finished at step %d (sizes looked at; `checkpoints verify` reads "
            "every byte)",
            job.run_name,
            stored.record.target,
        )
        return None
    source = source_of_run(settings.data, record, store, progress.alive)
    check_against_record(job, stored, source, store)
    check_space(job, store)
    steps = range(_newest_step(store), _highest_target(job, stored))
    data = open_preparation(job, source, steps, progress.behind)
    try:
        data.start()
        check_data(job, data, progress.waiting)
        log.info("first tokens ready after %.1f s", progress.arrived())
        corpus = TokenStream(
            data,
            progress,
            lambda: stop.requested,
            seed=settings.run.seed,
            seq_len=job.geometry.seq_len,
        )
        attempt = _open_with_lease(job, store, corpus, source, stop)
    except BaseException:
        data.close()
        raise
    if attempt is None:
        data.close()
    return attempt


def _open_with_lease(
    job: Job, store: Store, corpus: TokenStream, source: PinnedSource, stop: StopRequest
) -> Attempt | None:
    settings = job.settings

    def stopping() -> bool:
        beat()  # LEASE_WAIT may be longer than a job is allowed to give no sign of life
        return stop.requested

    lease = Lease(store, settings.checkpoints.lease_ttl, holder_identity())
    lease.acquire(settings.checkpoints.lease_wait, log.info, stopping, above=highest_epoch(store))
    try:
        lease.start_renewing()
        return open_under_lease(HeldRun(job, store, lease, corpus), source, stop)
    except BaseException:
        stop.taken()
        GracePeriod(stop, settings.checkpoints.grace_seconds).give_lease_back(lease.release)
        raise


def _newest_step(store: Store) -> int:
    """The step that this start will probably resume from: its tokens are fetched first."""
    return max((s.name.step for s in stored_checkpoints(store) if s.committed), default=0)


def _highest_target(job: Job, stored: StoredRecord | None) -> int:
    run = job.settings.run
    recorded = stored.record.target if stored else run.total_steps
    return recorded + run.additional_steps


def _trainer(name: str) -> Trainer:
    if name == "torch":
        from app.training.train_torch import train as train_torch

        return train_torch
    from app.training.train_lightning import train as train_lightning

    return train_lightning
