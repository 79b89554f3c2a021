"""From settings to an attempt that is ready to train, or to the news that nothing is left to do.

The order matters. Everything that can be refused is refused before anything is written to the
store: first the settings, then the device, the store, the run's identity, local folders and the
data. Only then does this process take the lease. Under it, it reads again what the store
says, since another process may have written in the meantime.
"""

import logging
from contextlib import ExitStack

from app.data.sources import PinnedSource
from app.data.token_progress import TokenProgress
from app.data.token_stream import TokenStream
from app.errors import Preempted
from app.heartbeat import beat
from app.observe.endpoint import served
from app.observe.prometheus import RunMetrics
from app.ranks.team import Team
from app.run.journal import TARGET_REACHED
from app.run.kept_inputs import tokenizer_of_run
from app.run.lease import Doing, Lease, holder_identity
from app.run.record import already_applied
from app.run.recorded_source import names_recorded_data, source_of_run
from app.run.view import RunView, read_view
from app.run.waiting import WaitingNote
from app.settings.combined import Settings
from app.state.identity import RunRecord
from app.stores.contract import Store
from app.stores.opening import open_store
from app.training.agreement import Agreement
from app.training.attempt import Attempt
from app.training.compute import resolve_compute, take_device
from app.training.first_weights import begun_run, check_name
from app.training.held_run import HeldRun
from app.training.job import Job, resolve_job, run_name_of
from app.training.loop import train_until_stopped, trainer_named
from app.training.opening import open_under_lease
from app.training.out_of_memory import memory_failures
from app.training.outcome import say_how_to_go_on, say_what_came_out, say_what_is_next
from app.training.plan import NOTHING_TO_DO
from app.training.preemption import GracePeriod, StopRequest, ended_by
from app.training.refusals import (
    check_against_record,
    check_first_weights,
    check_folders,
    check_place,
    check_resume,
    check_space,
    nothing_left_to_do,
)
from app.training.steps import Trainer
from app.training.training_data import check_data, open_preparation

log = logging.getLogger(__name__)


def run(settings: Settings, stop: StopRequest) -> None:
    """Train, and return once the target is reached. Raises an AppError for every other end."""
    team = Team(settings.place, settings.processes.peer_timeout)
    take_device(settings)
    run_name = run_name_of(settings)
    with served(settings, run_name) as metrics:
        with memory_failures(settings):
            attempt = open_attempt(settings, stop, team, metrics)
        if attempt is None:
            _dismiss(team, settings)
            return
        trainer = trainer_named(settings.run.trainer)
        try:
            _to_its_end(trainer, attempt, settings, stop)
        except Preempted:
            say_how_to_go_on(settings, run_name, attempt)
            raise
    say_what_came_out(settings, run_name, attempt)


def _to_its_end(trainer: Trainer, attempt: Attempt, settings: Settings, stop: StopRequest) -> None:
    why = TARGET_REACHED
    try:
        failure = train_until_stopped(trainer, attempt, settings)
        with memory_failures(settings):  # the copy for the last checkpoint is on the device too
            attempt.finish(failure)
    except BaseException as error:
        why = ended_by(error)
        raise
    finally:
        stop.taken()  # no further interruption: closing keeps to GRACE_SECONDS by itself
        attempt.close(why)


def open_attempt(
    settings: Settings,
    stop: StopRequest,
    team: Team | None = None,
    metrics: RunMetrics | None = None,
) -> Attempt | None:
    """An attempt with its state restored, or None if the run is finished. It tells `metrics`.

    The other processes of the `team`, if there are any, are called once everything was looked at.
    """
    team = team or Team(settings.place, settings.processes.peer_timeout)
    agreement = Agreement(team, stop)
    beat()
    store = open_store(settings.checkpoints.checkpoint_uri, run_name_of(settings))
    check_place(settings, store)
    store.check()
    view = read_view(store)
    check_resume(settings.run.resume, view)
    begun = begun_run(store, view)
    job = resolve_job(settings, begun, identified=True)
    check_name(settings, begun, job.run_name, job.init)
    record = view.record.record if view.record else None
    job = job.with_tokenizer(tokenizer_of_run(settings.data, record, store, job.tokenizer))
    progress = TokenProgress()
    if record is not None and nothing_left_to_do(job, record, view, store):
        _say_finished(job, record, view, store, progress)
        return None
    source = source_of_run(settings.data, record, store, progress.alive)
    check_against_record(job, view, source, store)
    check_space(job, view, store)
    check_folders(job, store)
    if job.init and job.init.directory and not view.committed:
        check_first_weights(job, job.init.directory)
    opened = ExitStack()
    data = open_preparation(job, source, _steps_left(job, record, view), progress.behind)
    opened.callback(data.close)
    try:
        note = _told(settings, store)
        opened.callback(note.close)
        data.start()
        trainer_named(settings.run.trainer)  # its libraries load while the first tokens are made
        job = check_data(job, data, progress.waiting)
        log.info("first tokens ready after %.1f s", progress.arrived())
        team.call()
        corpus = TokenStream(
            data,
            progress,
            agreement.waits_and_stops,
            seed=settings.run.seed,
            seq_len=job.geometry.seq_len,
        )
        parts = corpus, metrics or RunMetrics(job.run_name), team, agreement
        attempt = _open_with_lease(job, store, view, parts, source, stop, note)
    except BaseException:
        opened.close()
        raise
    if attempt is None:
        opened.close()
    return attempt


def _steps_left(job: Job, record: RunRecord | None, view: RunView) -> range:
    """From the step that this start will probably resume from: its tokens are fetched first."""
    run = job.settings.run
    target = (record.target if record else run.total_steps) + run.additional_steps
    return range(min(view.newest_step, target), target)


def _dismiss(team: Team, settings: Settings) -> None:
    """Let the others end too, where torchrun has started them already."""
    if team.place.under_torchrun:
        team.join(resolve_compute(settings.compute).device)
        team.document(NOTHING_TO_DO)


def _say_finished(
    job: Job, record: RunRecord, view: RunView, store: Store, progress: TokenProgress
) -> None:
    """Raises what `check_against_record` does for settings that are not those of the run."""
    data, run = job.settings.data, job.settings.run
    # The data may be gone by now: they are looked at only if DATASET names others than before.
    named = names_recorded_data(data, record)
    source = None if named else source_of_run(data, record, store, progress.alive)
    check_against_record(job, view, source, store)
    if note := already_applied(record, run.additional_steps, run.extension_id):
        log.info(note)
    log.info(
        "nothing to do: %s is finished at step %d (sizes looked at; `checkpoints verify` reads "
        "every byte)",
        job.run_name,
        record.target,
    )
    say_what_is_next(job.settings, job.run_name)


def _open_with_lease(
    job: Job,
    store: Store,
    view: RunView,
    parts: tuple[TokenStream, RunMetrics, Team, Agreement],
    source: PinnedSource,
    stop: StopRequest,
    note: WaitingNote,
) -> Attempt | None:
    settings = job.settings

    def stopping() -> bool:
        beat()  # LEASE_WAIT may be longer than a job is allowed to give no sign of life
        return stop.requested

    def on_wait(line: str) -> None:
        note.doing = "waiting for the lease"
        log.info(line)

    lease = Lease(store, settings.checkpoints.lease_ttl, note.holder)
    lease.tells = lambda: Doing("restoring")
    lease.acquire(settings.checkpoints.lease_wait, on_wait, stopping, above=view.highest_epoch)
    try:
        lease.start_renewing()
        note.close()
        held = HeldRun(job, store, lease, *parts)
        return open_under_lease(held, source, stop)
    except BaseException:
        stop.taken()
        GracePeriod(stop, settings.checkpoints.grace_seconds).give_lease_back(lease.release)
        raise


def _told(settings: Settings, store: Store) -> WaitingNote:
    """Tells from here on that this start prepares data, until it holds the lease."""
    ttl = settings.checkpoints.lease_ttl
    return WaitingNote(store, holder_identity(), "preparing data", ttl).start()
