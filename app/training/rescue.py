"""Rank 0 is gone: another process commits the last whole step in its place.

All of them have the same weights, so it does not matter which. The lease decides: whoever takes
it commits, and the rest has nothing to do. It may be taken only from rank 0 itself, which has died
with it. Where rank 0 gave it back, or somebody else took it, the run is not ours to write to.
"""

import logging
import time
from dataclasses import dataclass

import torch

from app.data.data_dir import DataDir
from app.data.tokenizer import read_tokenizer
from app.errors import LostPeer, Unavailable
from app.failures import first_line
from app.model.smollm2 import SmolLM2
from app.observe.metrics import MetricsLog
from app.observe.rows import Row, rows_left_here, stored_rows
from app.run.clock import utc_now
from app.run.journal import AttemptJournal, AttemptRecord
from app.run.layout import CheckpointName
from app.run.lease import Lease, holder_identity, read_lease
from app.run.view import RunView, read_view
from app.settings.combined import Settings
from app.state.snapshot import huggingface_files
from app.stores.contract import Store
from app.stores.opening import open_store
from app.training.checkpointing import Checkpointing
from app.training.compute import Compute
from app.training.plan import Plan
from app.training.preemption import GracePeriod, StopRequest
from app.training.saver import CheckpointSaver

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Remains:
    """The state after `step`, which is whole. Losses in nats per token."""

    step: int
    model: SmolLM2
    optimizer: torch.optim.Optimizer
    train_loss: float
    grad_norm: float
    validation_loss: float | None


def rescue(
    remains: Remains, plan: Plan, settings: Settings, compute: Compute, stop: StopRequest
) -> None:
    """Commit `remains`, unless rank 0 lives, has ended in order, or another has done it.

    What fails here is said, and not raised: that a process was lost is why this one ends.
    """
    try:
        store = open_store(settings.checkpoints.checkpoint_uri, plan.record.run_name)
        lease = _lease_of_the_dead(store, plan, settings, stop)
        if lease is None:
            return
        try:
            view = read_view(store)
            if view.newest_step < remains.step:
                _commit(remains, plan, settings, compute, stop, store, lease, view)
        finally:
            lease.release()
    except Exception as error:  # noqa: BLE001 - as the docstring says
        log.warning("step %d could not be committed: %s", remains.step, first_line(error))


def _lease_of_the_dead(
    store: Store, plan: Plan, settings: Settings, stop: StopRequest
) -> Lease | None:
    """The lease of rank 0, if it died with it; waits until it has been silent for long enough."""
    current = read_lease(store)
    if current is None or current[0].released or current[0].holder != plan.holder:
        return None
    lease = Lease(store, settings.checkpoints.lease_ttl, holder_identity())
    try:
        # Asked to stop or not: what is waited for fits into the grace period, or does not.
        grace = GracePeriod(stop, settings.checkpoints.grace_seconds)
        lease.acquire(0, log.info, lambda: not grace.fits(0))
    except Unavailable:
        read_lease(store)  # if not even that answers, it is the store that is away
        return None  # rank 0 lives and commits, or another process does in its place
    # What was read above may have changed meanwhile: this is what was there when it was taken.
    before = lease.taken_from
    died = before is not None and before.holder == plan.holder and not before.released
    if died and lease.epoch == plan.epoch + 1:
        lease.start_renewing()
        return lease
    lease.release()  # rank 0 gave it back after all, or another one had it, and has committed
    return None


def _commit(
    remains: Remains,
    plan: Plan,
    settings: Settings,
    compute: Compute,
    stop: StopRequest,
    store: Store,
    lease: Lease,
    view: RunView,
) -> None:
    log.warning("rank 0 is gone: this process commits step %d in its place", remains.step)
    newest = view.committed[0] if view.committed else None
    journal = _journal(remains, settings, store, lease, newest)
    journal.begin()
    tokenizer = read_tokenizer(plan.tokenizer, "the tokenizer of the run")
    config = remains.model.config
    saver = CheckpointSaver(
        store,
        lease,
        settings.checkpoints,
        huggingface_files(
            config, tokenizer.directory, tokenizer.bos_token_id, tokenizer.eos_token_id
        ),
        journal,
        protected=[newest] if newest else [],
    )
    metrics = _metrics(remains, plan, settings, store)
    checkpointing = Checkpointing(
        record=plan.record,
        compute=compute,
        model=remains.model,
        optimizer=remains.optimizer,
        trainer=settings.run.trainer,
        optimizer_settings=settings.optimizer,
        document_mask=settings.data.document_mask,
        tokens_per_step=plan.seq_len * settings.batch.global_batch_size,
        saver=saver,
        journal=journal,
        logs=metrics.objects,
        grace=GracePeriod(stop, settings.checkpoints.grace_seconds),
        start_step=newest.step if newest else 0,
        resumed_from_save_at=None,
    )
    try:
        checkpointing.save(remains.step, remains.train_loss, remains.validation_loss)
        checkpointing.wait_for_commits(remains.step)
    finally:
        saver.close()
        metrics.close()
        journal.end(f"exit {LostPeer.exit_code}: rank 0 is gone, and its last step was committed")
        journal.close()


def _journal(
    remains: Remains, settings: Settings, store: Store, lease: Lease, newest: CheckpointName | None
) -> AttemptJournal:
    """Of an attempt that makes no step: it goes on from `newest`, and commits what was made."""
    record = AttemptRecord(
        epoch=lease.epoch,
        holder=lease.holder,
        trainer=settings.run.trainer,
        started_at=utc_now(),
        resumed_from=str(newest) if newest else None,
        start_step=newest.step if newest else 0,
        step=remains.step,
    )
    return AttemptJournal(store, record)


def _metrics(remains: Remains, plan: Plan, settings: Settings, store: Store) -> MetricsLog:
    """The rows up to the step: those of the store, those that rank 0 left here, and the last."""
    data_dir, name = DataDir(settings.data.data_dir), plan.record.run_name
    directory = data_dir.logs(name, store.place)
    rows = stored_rows(store)
    there = max((row.step for row in rows), default=0)
    left = rows_left_here(directory, data_dir.former_logs(name, store.uri), rows)
    rows += [row for row in left if there < row.step <= remains.step]
    if remains.step not in {row.step for row in rows}:
        rows.append(
            Row(
                step=remains.step,
                tokens=remains.step * plan.seq_len * settings.batch.global_batch_size,
                loss=remains.train_loss,
                learning_rate=remains.optimizer.param_groups[0]["lr"],
                grad_norm=remains.grad_norm,
                tokens_per_second=None,
                mfu=None,
                validation_loss=None,
                attempt=plan.epoch,
                time=time.time(),
            )
        )
    return MetricsLog(directory, settings.logs.loggers, rows)
