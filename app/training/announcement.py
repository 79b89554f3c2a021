"""The first lines of an attempt in the log: what it trains, where, and from which step."""

import logging

from app.console import redacted
from app.training.held_run import HeldRun
from app.training.restoring import Resumed
from app.training.schedule import Schedule

log = logging.getLogger(__name__)


def announce(run: HeldRun, schedule: Schedule, resumed: Resumed | None) -> None:
    """Log what is trained, where, on which data, and from which step to which."""
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
    if not run.store.deletes:
        log.warning(
            "PRUNING IS OFF: %s does not let this job delete, so every checkpoint stays, and a "
            "small object .store-probe-… of each start",
            run.store.uri,
        )
    target = schedule.horizons[-1]
    if resumed:
        log.info(
            "resumed from step %d (%s), target step %d", resumed.progress.step, resumed.name, target
        )
    else:
        reason = "no checkpoint of this run is in the store"
        origin = f", weights from {job.settings.model.init_from}" if job.init else ""
        log.info("fresh start, target step %d: %s%s", target, reason, origin)
