"""From settings to an attempt that is ready to train, or to the news that nothing is left to do.

The order matters. Everything that can be refused is refused before anything is written to the
store: first the settings, then the device, the store, the run's identity, local folders and the
data. Only then does this process take the lease. Under it, it reads again what the store
says, since another process may have written in the meantime.
"""

import logging
from contextlib import ExitStack

from app.data.token_stream import TokenStream
from app.errors import EXIT_OK, Preempted
from app.heartbeat import beat
from app.observe.endpoint import served
from app.observe.prometheus import RunMetrics
from app.ranks.team import Team
from app.run.journal import TARGET_REACHED
from app.run.lease import Doing, Lease, holder_identity
from app.run.waiting import WaitingNote
from app.settings.combined import Settings
from app.stores.contract import Store
from app.training.agreement import Agreement
from app.training.attempt import Attempt
from app.training.compute import resolve_compute, take_device
from app.training.groundwork import Groundwork, lay_groundwork
from app.training.held_run import HeldRun
from app.training.job import Job, run_name_of
from app.training.loop import train_until_stopped, trainer_named
from app.training.nodes import assemble_nodes, other_nodes_told
from app.training.opening import open_under_lease
from app.training.out_of_memory import memory_failures
from app.training.outcome import say_how_to_go_on, say_what_came_out
from app.training.plan import NOTHING_TO_DO
from app.training.preemption import GracePeriod, StopRequest, ended_by
from app.training.steps import Trainer

log = logging.getLogger(__name__)


def run(settings: Settings, stop: StopRequest) -> None:
    """Train, and return once the target is reached. Raises an AppError for every other end."""
    team = Team(settings.place, settings.processes.peer_timeout)
    with ExitStack() as serving:
        with other_nodes_told(team):
            take_device(settings)
            run_name = run_name_of(settings)
            metrics = serving.enter_context(served(settings, run_name))
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
    ground = lay_groundwork(settings)
    if ground is None:
        return None
    opened = ExitStack()
    opened.callback(ground.data.close)
    try:
        note = _told(settings, ground.store)
        opened.callback(note.close)
        ground = ground.with_first_tokens()
        job = assemble_nodes(ground, settings, team)
        team.call()
        corpus = TokenStream(
            ground.data,
            ground.progress,
            agreement.waits_and_stops,
            seed=settings.run.seed,
            seq_len=job.geometry.seq_len,
        )
        parts = corpus, metrics or RunMetrics(job.run_name), team, agreement
        attempt = _open_with_lease(job, ground, parts, stop, note)
    except BaseException:
        opened.close()
        raise
    if attempt is None:
        opened.close()
    return attempt


def _dismiss(team: Team, settings: Settings) -> None:
    """Let the others end too, where they are started already: by torchrun, on other nodes."""
    if team.meeting is not None:
        team.meeting.end(EXIT_OK, ["the run is finished"])
    elif team.place.under_torchrun:
        team.join(resolve_compute(settings.compute).device)
        team.document(NOTHING_TO_DO)


def _open_with_lease(
    job: Job,
    ground: Groundwork,
    parts: tuple[TokenStream, RunMetrics, Team, Agreement],
    stop: StopRequest,
    note: WaitingNote,
) -> Attempt | None:
    settings, store, view = job.settings, ground.store, ground.view

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
        return open_under_lease(held, ground.source, stop)
    except BaseException:
        stop.taken()
        GracePeriod(stop, settings.checkpoints.grace_seconds).give_lease_back(lease.release)
        raise


def _told(settings: Settings, store: Store) -> WaitingNote:
    """Tells from here on that this start prepares data, until it holds the lease."""
    ttl = settings.checkpoints.lease_ttl
    return WaitingNote(store, holder_identity(), "preparing data", ttl).start()
