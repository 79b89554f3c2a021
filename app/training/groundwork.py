"""What a start finds out before it takes the lease: whether there is anything to do, that nothing
is in the way, and its first tokens.

The first process of each node does this by itself, since each node has a disk of its own.
"""

import logging
from dataclasses import dataclass, replace

from app.data.preparation import Preparation
from app.data.sources import PinnedSource
from app.data.token_progress import TokenProgress
from app.run.kept_inputs import tokenizer_of_run
from app.run.record import already_applied
from app.run.recorded_source import names_recorded_data, source_of_run
from app.run.view import RunView, read_view
from app.settings.combined import Settings
from app.state.identity import RunRecord
from app.stores.contract import Store
from app.stores.opening import open_store
from app.training.first_weights import begun_run, check_name
from app.training.job import Job, resolve_job, run_name_of
from app.training.loop import trainer_named
from app.training.outcome import say_what_is_next
from app.training.refusals import (
    check_against_record,
    check_first_weights,
    check_folders,
    check_place,
    check_resume,
    check_space,
    nothing_left_to_do,
)
from app.training.training_data import check_data, open_preparation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Groundwork:
    """The job and what it needs. The tokens of `data` are made once that is started."""

    job: Job
    store: Store
    view: RunView
    source: PinnedSource
    data: Preparation
    progress: TokenProgress

    def with_first_tokens(self) -> "Groundwork":
        """Start making tokens, and wait for the first ones. Raises what `check_data` raises."""
        self.data.start()
        trainer_named(self.job.settings.run.trainer)  # its libraries load meanwhile
        job = check_data(self.job, self.data, self.progress.waiting)
        log.info("first tokens ready after %.1f s", self.progress.arrived())
        return replace(self, job=job)


def lay_groundwork(settings: Settings) -> Groundwork | None:
    """Look at all that can be refused; nothing is written to the run. None if it is finished."""
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
    data = open_preparation(job, source, _steps_left(job, record, view), progress.behind)
    return Groundwork(job, store, view, source, data, progress)


def _steps_left(job: Job, record: RunRecord | None, view: RunView) -> range:
    """From the step that this start will probably resume from: its tokens are fetched first."""
    run = job.settings.run
    target = (record.target if record else run.total_steps) + run.additional_steps
    return range(min(view.newest_step, target), target)


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
