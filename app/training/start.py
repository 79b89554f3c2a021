"""From settings to an attempt that is ready to train, or to the news that nothing is left to do.

The order matters. Everything that can be refused is refused before anything is written
to the store: settings, device, store, the run's identity, then the data. Only then is
the lease taken, and what the store says is read again under it.
"""

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from app.console import counted, redacted
from app.data.locks import own_folder
from app.data.sources import PinnedSource
from app.data.token_progress import TokenProgress
from app.data.token_stream import OutOfData, TokenStream
from app.errors import AppError, Preempted
from app.failures import disk_failures
from app.heartbeat import beat
from app.model.attention import AttentionShape, fastest_attention
from app.model.smollm2 import SmolLM2
from app.observe.metrics import MetricsLog, Row, local_rows, stored_rows
from app.observe.report import publish
from app.run.checkpoints import CheckpointName, highest_epoch, newest_valid, stored_checkpoints
from app.run.journal import AttemptJournal, AttemptRecord, now, read_attempts
from app.run.lease import Lease, holder_identity
from app.run.record import StoredRecord, already_applied, create_record, extend, load_record
from app.run.recorded_source import names_recorded_data, remember_parts, source_of_run
from app.run.retention import clean_up, quarantine
from app.settings.combined import Settings
from app.state.progress import Progress
from app.state.snapshot import STATE_FILES, huggingface_files, restore
from app.state.weights import load_pretrained
from app.stores.contract import Store
from app.stores.opening import open_store
from app.training.attempt import Attempt, Sections, Trainer
from app.training.job import Job, check_data, open_preparation, resolve_job
from app.training.optimizer import build_optimizer
from app.training.preemption import NOTHING_TO_SAVE, GracePeriod, Interrupted, StopRequest
from app.training.refusals import check_against_record, check_space, is_finished
from app.training.saver import CheckpointSaver
from app.training.schedule import Schedule

log = logging.getLogger(__name__)


def run(settings: Settings, stop: StopRequest) -> None:
    """The train command: raises an AppError for every end but a reached target."""
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
        stop.taken()  # what follows takes no longer than GRACE_SECONDS, and is worth it
        attempt.close(why)


def _train(trainer: Trainer, attempt: Attempt) -> BaseException | None:
    """Train. Returns what kept the data away, if that ended it."""
    gc.collect()
    gc.freeze()  # no collection in the loop walks through what the imports left
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
    store.check()
    stored = load_record(store)
    progress = TokenProgress()
    if stored is not None and is_finished(job, stored.record, store):
        # Its data may be gone. Under another name they may still be the same.
        named = names_recorded_data(settings.data, stored.record)
        source = None if named else source_of_run(settings.data, stored.record, progress.alive)
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
    source = source_of_run(settings.data, stored.record if stored else None, progress.alive)
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
        beat()  # LEASE_WAIT bounds the wait, and may be longer than a job may be silent
        return stop.requested

    lease = Lease(store, settings.checkpoints.lease_ttl, holder_identity())
    lease.acquire(settings.checkpoints.lease_wait, log.info, stopping, above=highest_epoch(store))
    try:
        lease.start_renewing()
        return _open_under_lease(HeldRun(job, store, lease, corpus), source, stop)
    except BaseException:
        stop.taken()
        GracePeriod(stop, settings.checkpoints.grace_seconds).give_lease_back(lease.release)
        raise


def _newest_step(store: Store) -> int:
    """Where this start is likely to go on; what it reads first is fetched first."""
    return max((s.name.step for s in stored_checkpoints(store) if s.committed), default=0)


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
    corpus: TokenStream


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that was restored."""

    name: CheckpointName
    progress: Progress


def _open_under_lease(run: HeldRun, source: PinnedSource, stop: StopRequest) -> Attempt | None:
    """Read the store again, now that nobody else writes to it, and restore."""
    job, store, settings = run.job, run.store, run.job.settings
    stored = load_record(store)
    check_against_record(job, stored, source, store)
    if stored is None:
        total_steps = settings.run.total_steps
        stored = create_record(
            store, job.run_name, job.identity(source.revision, source.fingerprint), total_steps
        )
    remember_parts(store, source.parts)
    clean_up(store, run.lease.epoch, run.lease)
    model = SmolLM2.empty(
        job.config,
        job.compute.device,
        gradient_checkpointing=settings.compute.gradient_checkpointing,
    )
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
    job, settings = run.job, run.job.settings
    data_dir = settings.data.data_dir
    with disk_failures(f"DATA_DIR={data_dir}"), own_folder(data_dir / "restore") as scratch:
        found = newest_valid(run.store, scratch, required=STATE_FILES, alive=beat)
        if found is None:
            if job.init_directory:
                with disk_failures(f"INIT_FROM={settings.model.init_from}"):
                    load_pretrained(job.init_directory, model)
            else:
                model.initialize(settings.run.seed, settings.model.init)
            torch.manual_seed(settings.run.seed)
            return None
        with disk_failures(str(found.directory)):
            progress = restore(found.directory, model, optimizer)
    for name, reason in found.damaged:
        target = quarantine(run.store, name, reason, run.lease)
        log.error("DAMAGED CHECKPOINT %s moved to %s: %s", name, target, reason)
    before = progress.optimizer | {"document_mask": progress.document_mask}
    now = settings.optimizer.model_dump() | {"document_mask": settings.data.document_mask}
    for key in sorted(set(before) & set(now)):
        if before[key] != now[key]:
            log.warning("%s changed during the run: %s, was %s", key.upper(), now[key], before[key])
    return Resumed(found.name, progress)


def _announce(run: HeldRun, schedule: Schedule, resumed: Resumed | None) -> None:
    """The first lines of a run say what it is."""
    job, compute, geometry = run.job, run.job.compute, run.job.geometry
    data = job.settings.data
    tokens = run.corpus.preparation.index
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
        f"{tokens.n_tokens('train'):,}",
        "" if tokens.complete else " so far",
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
    run.lease.check()  # the model may have taken long to restore
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
        corpus=run.corpus,
        saver=saver,
        lease=run.lease,
        metrics=metrics,
        journal=journal,
        stop=stop,
        publish_report=partial(publish, run.store, run.lease),
        start_step=step,
        resumed=resumed.progress if resumed else None,
    )


def _journal(run: HeldRun, resumed: Resumed | None, rows: Sequence[Row]) -> AttemptJournal:
    """What this attempt starts from, and what it cost. `rows` are all that anybody wrote down."""
    step = resumed.progress.step if resumed else 0
    lost = 0
    for before in read_attempts(run.store, newest=1):
        # Rows of attempts before that one were counted by it.
        made = [row.step for row in rows if row.attempt == before.epoch]
        if lost := max(0, max([*made, before.step]) - step):
            steps = counted(lost, "step")
            log.info("attempt %d lost %s after step %d", before.epoch, steps, step)
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


def _trainer(name: str) -> Trainer:
    if name == "torch":
        from app.training.train_torch import train as train_torch

        return train_torch
    from app.training.train_lightning import train as train_lightning

    return train_lightning
