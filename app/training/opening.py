"""From a run that this process holds to an attempt that is ready to train."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from app.console import counted
from app.data.data_dir import DataDir
from app.data.sources import PinnedSource
from app.errors import Damaged
from app.model.smollm2 import SmolLM2
from app.observe.markup import seconds_of
from app.observe.metrics import MetricsLog
from app.observe.prometheus import Begun
from app.observe.report import publish
from app.observe.rows import Beginning, Row, rows_left_here, stored_rows
from app.observe.samples import SampleLog, stored_samples
from app.observe.services import link_to, open_tracking
from app.run.clock import utc_now
from app.run.journal import TARGET_REACHED, AttemptJournal, AttemptRecord, read_attempts
from app.run.kept_inputs import keep_inputs
from app.run.lease import Lease
from app.run.record import StoredRecord, create_record, extend
from app.run.recorded_source import remember_parts
from app.run.retention import clean_up
from app.run.view import RunView, read_view
from app.state.identity import RunRecord
from app.state.random_state import RandomState
from app.state.snapshot import huggingface_files
from app.training.announcement import announce
from app.training.attempt import Attempt
from app.training.checkpointing import Checkpointing
from app.training.flight import keep_flight_record
from app.training.held_run import HeldRun
from app.training.nodes import node_folders
from app.training.optimizer import build_optimizer
from app.training.outcome import say_what_is_next
from app.training.plan import Plan, send_plan, settings_in_common
from app.training.preemption import GracePeriod, StopRequest, ended_by
from app.training.profiling import StepProfiler, TraceKeeper
from app.training.refusals import check_against_record, check_ledger
from app.training.restoring import Resumed, restore_newest
from app.training.saver import CheckpointSaver
from app.training.schedule import Schedule
from app.training.step_clock import StepClock
from app.training.step_log import StepLog
from app.training.steps import Sections

log = logging.getLogger(__name__)


def open_under_lease(run: HeldRun, source: PinnedSource, stop: StopRequest) -> Attempt | None:
    """Read the store again, now that nobody else writes to it, and restore.

    None if nothing is left to do; the lease is given back then.
    """
    job, settings = run.job, run.job.settings
    view = read_view(run.store)
    stored = _record(run, view, source)
    remember_parts(run.store, source.parts)
    clean_up(run.store, view, run.lease.epoch, run.lease)
    keep_inputs(run.store, source, job.tokenizer)
    model = SmolLM2.empty(
        job.config,
        job.compute.device,
        gradient_checkpointing=settings.compute.gradient_checkpointing,
    )
    optimizer = build_optimizer(model, settings.optimizer, job.compute.device)
    resumed = restore_newest(run, view, stored.record, model, optimizer)
    step = resumed.progress.step if resumed else 0
    if resumed:
        check_ledger(stored.record, resumed.progress, run.store)
    if step >= stored.record.target and (killed := _killed_at_its_end(run, view)):
        _take_its_place(run, killed)
        return None
    outcome = extend(
        run.store,
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
        say_what_is_next(settings, job.run_name)
        return None
    schedule = Schedule(settings.optimizer, outcome.stored.record.horizons)
    announce(run, schedule, resumed)
    rows = stored_rows(run.store)
    journal = _journal(run, view, resumed, rows)
    grace = GracePeriod(stop, settings.checkpoints.grace_seconds)
    run.lease.check()  # restoring may have taken so long that the lease was lost
    record = outcome.stored.record
    _bring_in_the_others(run, record, model, optimizer, resumed)
    journal.begin()
    try:
        attempt = _attempt(
            run, record, model, optimizer, schedule, resumed, rows, journal, grace, stop
        )
        run.prometheus.begin(_begun(run, view, attempt, rows))
        return attempt
    except BaseException as error:
        # Without this the attempt would read as one that was killed.
        why = ended_by(error)
        stop.taken()
        grace.record_end(lambda: journal.end(why))
        raise


def _bring_in_the_others(
    run: HeldRun,
    record: RunRecord,
    model: SmolLM2,
    optimizer: torch.optim.Optimizer,
    resumed: Resumed | None,
) -> None:
    """Let the other processes of the team begin with this state. Raises LostPeer."""
    if not run.team.is_many:
        return
    job, tokens = run.job, run.corpus.preparation
    run.team.join(job.compute.device)
    plan = Plan(
        settings=settings_in_common(job.settings),
        record=record,
        step=resumed.progress.step if resumed else 0,
        resumed=resumed is not None,
        validation_loss=resumed.progress.validation_loss if resumed else None,
        random=RandomState.capture(),
        seq_len=job.geometry.seq_len,
        tokens=tokens.directory,
        source=tokens.index.source,
        tokenizer=job.tokenizer.directory,
        holder=run.lease.holder,
        epoch=run.lease.epoch,
        nodes=node_folders(run.team),
    )
    send_plan(run.team, plan, model, optimizer)


def _killed_at_its_end(run: HeldRun, view: RunView) -> AttemptRecord | None:
    """The attempt before, if it was killed when it had reached the target, with the same
    ADDITIONAL_STEPS and no EXTENSION_ID. Raises Damaged if its record
    cannot be read, and the store's errors."""
    asked, newest = run.job.settings.run.unnamed_steps, view.newest_attempts(1)
    records = read_attempts(run.store, newest) if asked else []
    if asked and len(records) < len(newest):
        run.store.get(newest[0].key)  # where the store fails, another start may read it
        raise Damaged(
            f"{run.store.uri}/{newest[0].key} cannot be read, so nobody knows whether the attempt "
            f"before made these ADDITIONAL_STEPS={asked}: set EXTENSION_ID to extend the run"
        )
    for before in records:
        if before.was_killed and before.additional_steps == asked:
            return before
    return None


def _take_its_place(run: HeldRun, killed: AttemptRecord) -> None:
    """Record the end of an attempt that could not, and give the lease back.

    An orchestrator starts the job again after a kill, and that start may not extend the run a
    second time. The start after it is a new one.
    """
    journal = AttemptJournal(run.store, killed)
    run.lease.check()
    journal.end(f"{TARGET_REACHED}, then killed")
    log.info(
        "nothing to do: attempt %d reached its target, step %d, and was killed before it "
        "could say so. This start takes its place: ADDITIONAL_STEPS=%d is for the next one",
        killed.epoch,
        killed.step,
        killed.additional_steps,
    )
    run.lease.release()
    journal.close()


def _record(run: HeldRun, view: RunView, source: PinnedSource) -> StoredRecord:
    """The run's record, made now if this is the run's first start."""
    job = run.job
    check_against_record(job, view, source, run.store)
    if view.record is not None:
        return view.record
    identity = job.identity(source.revision, source.fingerprint)
    return create_record(run.store, job.run_name, identity, job.settings.run.total_steps)


def _attempt(
    run: HeldRun,
    record: RunRecord,
    model: SmolLM2,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    resumed: Resumed | None,
    rows: Sequence[Row],
    journal: AttemptJournal,
    grace: GracePeriod,
    stop: StopRequest,
) -> Attempt:
    job, settings = run.job, run.job.settings
    step = resumed.progress.step if resumed else 0
    logs_dir = DataDir(settings.data.data_dir).logs(job.run_name, run.store.place)
    earlier = [row for row in rows if row.step <= step]
    metrics = MetricsLog(logs_dir, settings.logs.loggers, earlier, run.prometheus)
    holds = partial(_holds, run.lease)
    tracking = open_tracking(settings, job.run_name, run.store, logs_dir, earlier, holds)
    samples = SampleLog([sample for sample in stored_samples(run.store) if sample.step <= step])
    clock = StepClock(step)
    logs = partial(_logs, metrics, samples)
    checkpointing = _checkpointing(run, record, model, optimizer, logs, journal, grace, resumed)
    checkpointing.saver.on_commit = lambda *commit: tracking.link(link_to(run.store, *commit))
    step_log = StepLog(
        metrics=metrics,
        tracking=tracking,
        samples=samples,
        clock=clock,
        checkpointing=checkpointing,
        compute=job.compute,
        geometry=job.geometry,
        corpus=run.corpus,
        target=schedule.horizons[-1],
        epoch=run.lease.epoch,
    )
    return Attempt(
        sections=Sections(settings.data, settings.optimizer, settings.checkpoints, settings.logs),
        compute=job.compute,
        geometry=job.geometry,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        corpus=run.corpus,
        checkpointing=checkpointing,
        step_log=step_log,
        lease=run.lease,
        journal=journal,
        clock=clock,
        stop=stop,
        grace=grace,
        team=run.team,
        agreement=run.agreement,
        profiler=_profiler(run),
        publish_report=partial(publish, run.store, run.lease),
        keep_flight_record=_flight_keeper(run),
        start_step=step,
        validation_loss=resumed.progress.validation_loss if resumed else None,
    )


def _holds(lease: Lease) -> bool:
    return not lease.lost


def _flight_keeper(run: HeldRun) -> Callable[[], None]:
    return partial(keep_flight_record, lambda: run.store, run.lease.epoch, run.team.rank)


def _begun(run: HeldRun, view: RunView, attempt: Attempt, rows: Sequence[Row]) -> Begun:
    """What is told of the attempt to whoever watches it."""
    own = attempt.journal.record
    first = next(iter(read_attempts(run.store, view.attempts[:1])), own)
    return Begun(
        attempt=own.epoch,
        start_step=own.start_step,
        target=attempt.target,
        run_begun=seconds_of(first.started_at) or time.time(),
        earlier=[row for row in rows if row.step <= own.start_step],
        saving=attempt.checkpointing.told,
    )


def _profiler(run: HeldRun) -> StepProfiler:
    settings = run.job.settings
    scratch = DataDir(settings.data.data_dir).profiles
    keeper = TraceKeeper(lambda: run.store, scratch, run.lease.epoch, run.team.rank)
    return StepProfiler(settings.logs.profiled, keeper, run.job.compute.device)


def _logs(metrics: MetricsLog, samples: SampleLog) -> dict[str, Beginning]:
    """What goes into the store beside each checkpoint."""
    return {**metrics.objects(), **samples.objects()}


def _checkpointing(
    run: HeldRun,
    record: RunRecord,
    model: SmolLM2,
    optimizer: torch.optim.Optimizer,
    logs: Callable[[], Mapping[str, Beginning]],
    journal: AttemptJournal,
    grace: GracePeriod,
    resumed: Resumed | None,
) -> Checkpointing:
    job, settings, tokenizer = run.job, run.job.settings, run.job.tokenizer
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
    return Checkpointing(
        record=record,
        compute=job.compute,
        model=model,
        optimizer=optimizer,
        trainer=settings.run.trainer,
        optimizer_settings=settings.optimizer,
        document_mask=settings.data.document_mask,
        tokens_per_step=job.geometry.tokens_per_step,
        saver=saver,
        journal=journal,
        logs=logs,
        grace=grace,
        start_step=resumed.progress.step if resumed else 0,
        resumed_from_save_at=resumed.progress.saved_at if resumed else None,
    )


def _journal(
    run: HeldRun, view: RunView, resumed: Resumed | None, stored: Sequence[Row]
) -> AttemptJournal:
    """The journal of this attempt. It says how many steps of the attempt before were lost.

    Beside the `stored` rows, those that were left here tell of steps that no checkpoint holds.
    """
    step = resumed.progress.step if resumed else 0
    data_dir, name = DataDir(run.job.settings.data.data_dir), run.job.run_name
    former = data_dir.former_logs(name, run.store.uri)
    here = rows_left_here(data_dir.logs(name, run.store.place), former, stored)
    lost = 0
    for before in read_attempts(run.store, view.newest_attempts(1)):
        # What earlier attempts lost stands in the records of those that came after them.
        made = [row.step for row in (*stored, *here) if row.attempt == before.epoch]
        if lost := max(0, max([*made, before.step]) - step):
            steps = counted(lost, "step")
            log.info("attempt %d lost %s after step %d", before.epoch, steps, step)
    record = AttemptRecord(
        epoch=run.lease.epoch,
        holder=run.lease.holder,
        trainer=run.job.settings.run.trainer,
        started_at=utc_now(),
        resumed_from=str(resumed.name) if resumed else None,
        start_step=step,
        additional_steps=run.job.settings.run.unnamed_steps,
        steps_lost=lost,
        step=step,
    )
    return AttemptJournal(run.store, record)
