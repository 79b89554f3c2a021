"""From settings to an attempt that is ready to train, or to the news that nothing is left to do.

The order matters. Everything that can be refused is refused before anything is written
to the store: settings, device, store, the run's identity, then the data. Only then is
the lease taken, and what the store says is read again under it.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from app.admission import check_against_record, check_space, is_finished, source_of_run
from app.attempt import Attempt, Corpus, Sections, Trainer
from app.attempts import AttemptJournal, AttemptRecord, now, read_attempts
from app.checkpoints import CheckpointName, highest_epoch, newest_valid
from app.errors import AppError, Preempted
from app.failures import disk_failures
from app.health import beat
from app.job import Job, prepare_tokens, resolve_job
from app.lease import Lease, holder_identity
from app.locks import own_folder
from app.metrics import MetricsLog, Row, local_rows, stored_rows
from app.model import SmolLM2
from app.objective import Schedule
from app.optimizers import build_optimizer
from app.preemption import NOTHING_TO_SAVE, Interrupted, StopRequest
from app.prepare import PreparedData
from app.pretrained import load_pretrained
from app.record import (
    Identity,
    StoredRecord,
    create_record,
    extend,
    load_record,
)
from app.retention import quarantine, remove_unfinished, set_late_aside
from app.sampler import SampleOrder
from app.saver import CheckpointSaver
from app.sections import redacted
from app.settings import Settings
from app.state import STATE_FILES, Progress, huggingface_files, restore
from app.stores import Store, open_store

log = logging.getLogger(__name__)


def run(settings: Settings, stop: StopRequest) -> None:
    """The train command: raises an AppError for every end but a reached target."""
    trainer = _trainer(settings.run.trainer)
    attempt = open_attempt(settings, stop)
    if attempt is None:
        return
    why = "target reached"
    try:
        trainer(attempt)
        attempt.finish()
    except AppError as error:
        why = f"exit {error.exit_code}: {redacted(str(error))}"
        raise
    except Interrupted:
        why = f"exit {Preempted.exit_code}: {NOTHING_TO_SAVE}"
        raise
    except BaseException as error:
        why = f"{type(error).__name__}: {redacted(str(error))}"
        raise
    finally:
        attempt.close(why)


def open_attempt(settings: Settings, stop: StopRequest) -> Attempt | None:
    """An attempt with its state restored, or None if the run is finished."""
    beat()
    job = resolve_job(settings)
    store = open_store(settings.checkpoints.checkpoint_uri, job.run_name)
    store.check()
    stored = load_record(store)
    source = source_of_run(job, stored)
    identity = job.identity(source)
    check_against_record(job, stored, identity, store)
    if stored is not None and is_finished(job, stored.record, store):
        log.info("nothing to do: %s is finished at step %d", job.run_name, stored.record.target)
        return None
    check_space(job, store)
    data = prepare_tokens(job, source, _highest_target(job, stored))
    lease = Lease(store, settings.checkpoints.lease_ttl, holder_identity())
    lease.acquire(
        settings.checkpoints.lease_wait,
        log.info,
        lambda: stop.requested,
        above=highest_epoch(store),
    )
    try:
        lease.start_renewing()
        return _open_under_lease(HeldRun(job, store, lease, data), identity, stop)
    except BaseException:
        lease.release()
        raise


def _highest_target(job: Job, stored: StoredRecord | None) -> int:
    run = job.settings.run
    recorded = stored.record.target if stored else run.total_steps
    return recorded + run.additional_steps


@dataclass(frozen=True)
class HeldRun:
    """A run that this process may write to."""

    job: Job
    store: Store
    lease: Lease
    data: PreparedData


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that was restored."""

    name: CheckpointName
    progress: Progress


def _open_under_lease(run: HeldRun, identity: Identity, stop: StopRequest) -> Attempt | None:
    """Read the store again, now that nobody else writes to it, and restore."""
    job, store, settings = run.job, run.store, run.job.settings
    stored = load_record(store)
    check_against_record(job, stored, identity, store)
    if stored is None:
        stored = create_record(store, job.run_name, identity, settings.run.total_steps)
    for name in set_late_aside(store):
        log.error("LATE CHECKPOINT %s moved aside: another attempt had gone on before it", name)
    for name in remove_unfinished(store):
        log.info("removed an upload that was cut short: %s", name)
    model = SmolLM2(job.config, gradient_checkpointing=settings.compute.gradient_checkpointing)
    model.to(job.compute.device)
    optimizer = build_optimizer(model, settings.optimizer, job.compute.device)
    resumed = _restore(run, model, optimizer)
    step = resumed.progress.step if resumed else 0
    outcome = extend(
        store,
        stored,
        step=step,
        additional_steps=settings.run.additional_steps,
        extension_id=settings.run.extension_id,
    )
    if outcome.note:
        log.info(outcome.note)
    if step >= outcome.stored.record.target:
        log.info("nothing to do: %s is finished at step %d", job.run_name, step)
        run.lease.release()
        return None
    schedule = Schedule(settings.optimizer, outcome.stored.record.horizons)
    _announce(run, schedule, resumed)
    return _attempt(run, model, optimizer, schedule, resumed, stop)


def _restore(run: HeldRun, model: SmolLM2, optimizer: torch.optim.Optimizer) -> Resumed | None:
    """Load the newest valid checkpoint, or draw the first weights. Damaged ones move aside."""
    job = run.job
    data_dir = job.settings.data.data_dir
    with disk_failures(f"DATA_DIR={data_dir}"), own_folder(data_dir / "restore") as scratch:
        found = newest_valid(run.store, scratch, required=STATE_FILES)
        if found is None:
            if job.init_directory:
                load_pretrained(job.init_directory, model)
            else:
                model.initialize(job.settings.run.seed, job.settings.model.init)
            torch.manual_seed(job.settings.run.seed)
            return None
        progress = restore(found.directory, model, optimizer)
    for name, reason in found.damaged:
        target = quarantine(run.store, name, reason)
        log.error("DAMAGED CHECKPOINT %s moved to %s: %s", name, target, reason)
    before, now = progress.optimizer, job.settings.optimizer.model_dump()
    for key in sorted(set(before) & set(now)):
        if before[key] != now[key]:
            log.warning("%s changed during the run: %s, was %s", key.upper(), now[key], before[key])
    return Resumed(found.name, progress)


def _announce(run: HeldRun, schedule: Schedule, resumed: Resumed | None) -> None:
    """The first lines of a run say what it is."""
    job, compute, geometry = run.job, run.job.compute, run.job.geometry
    data = job.settings.data
    corpus = run.data.train
    log.info(
        "run %s: %s, %s parameters, trainer %s",
        job.run_name,
        job.model_name,
        f"{job.config.parameter_count:,}",
        job.settings.run.trainer,
    )
    log.info(
        "device %s, precision %s, %s",
        compute.device_name,
        compute.precision,
        "compiled" if compute.compile else "not compiled",
    )
    log.info(
        "data %s: %s tokens%s; step = %d sequences of %d tokens in micro-batches of %d",
        redacted(data.dataset),
        f"{corpus.n_tokens:,}",
        "" if run.data.complete else " so far, as many as the run needs",
        geometry.global_batch_size,
        geometry.seq_len,
        geometry.batch_size,
    )
    log.info("learning rate %s", schedule.describe())
    if job.settings.optimizer.optimizer == "muon":
        log.info("optimizer Muon for the matrices inside the layers, AdamW for the rest")
    every = job.settings.checkpoints.checkpoint_every_steps
    log.info("checkpoints every %d steps to %s (attempt %d)", every, run.store.uri, run.lease.epoch)
    if not run.lease.protected:
        log.warning(
            "SINGLE-WRITER PROTECTION IS OFF: %s ignores conditional writes, so two processes on "
            "this run would not notice each other",
            run.store.uri,
        )
    target = schedule.horizons[-1]
    if resumed:
        log.info(
            "resumed from step %d (%s), target step %d", resumed.progress.step, resumed.name, target
        )
    else:
        reason = "no checkpoint of this run is in the store"
        origin = f", weights from {job.settings.model.init_from}" if job.init_directory else ""
        log.info("fresh start, target step %d: %s%s", target, reason, origin)


def _attempt(
    run: HeldRun,
    model: SmolLM2,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    resumed: Resumed | None,
    stop: StopRequest,
) -> Attempt:
    job, settings, tokenizer = run.job, run.job.settings, run.job.tokenizer
    step = resumed.progress.step if resumed else 0
    logs_dir = settings.data.data_dir / "logs" / job.run_name
    rows = stored_rows(run.store)
    journal = _journal(run, resumed, [*rows, *local_rows(logs_dir)])
    journal.begin()
    metrics = MetricsLog(
        logs_dir, settings.logs, job.run_name, [row for row in rows if row.step <= step]
    )
    saver = CheckpointSaver(
        run.store,
        run.lease,
        settings.checkpoints,
        huggingface_files(
            job.config, tokenizer.directory, tokenizer.bos_token_id, tokenizer.eos_token_id
        ),
        journal,
        protected=[resumed.name] if resumed else [],
    )
    return Attempt(
        sections=Sections(
            data=settings.data,
            optimizer=settings.optimizer,
            checkpoints=settings.checkpoints,
            logs=settings.logs,
            trainer=settings.run.trainer,
        ),
        compute=job.compute,
        geometry=job.geometry,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        corpus=Corpus(
            train=run.data.train,
            validation=run.data.validation,
            order=_order(run),
            tokenizer=tokenizer,
        ),
        saver=saver,
        lease=run.lease,
        metrics=metrics,
        journal=journal,
        stop=stop,
        start_step=step,
        resumed_from_save_at=resumed.progress.saved_at if resumed else None,
    )


def _journal(run: HeldRun, resumed: Resumed | None, rows: Sequence[Row]) -> AttemptJournal:
    """What this attempt starts from, and what it cost. `rows` are all that anybody wrote down."""
    step = resumed.progress.step if resumed else 0
    before = read_attempts(run.store, newest=1)
    known = [row.step for row in rows] + [record.step for record in before]
    lost = max(0, max(known) - step) if before else 0
    if lost:
        log.info("attempt %d lost the %d steps after step %d", before[-1].epoch, lost, step)
    record = AttemptRecord(
        epoch=run.lease.epoch,
        holder=run.lease.holder,
        trainer=run.job.settings.run.trainer,
        started_at=now(),
        resumed_from=str(resumed.name) if resumed else None,
        start_step=step,
        steps_lost=lost,
        step=step,
    )
    return AttemptJournal(run.store, record)


def _order(run: HeldRun) -> SampleOrder:
    """Epochs turn only where the whole corpus is tokenized; elsewhere it is long enough."""
    sequences = (run.data.train.n_tokens - 1) // run.job.geometry.seq_len
    return SampleOrder(
        n_sequences=sequences if run.data.complete else None, seed=run.job.settings.run.seed
    )


def _trainer(name: str) -> Trainer:
    if name == "torch":
        from app.train_torch import train as train_torch

        return train_torch
    from app.train_lightning import train as train_lightning

    return train_lightning
