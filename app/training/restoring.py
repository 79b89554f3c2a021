"""From the newest valid checkpoint, or from first weights, to a model that can train."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from app.data.data_dir import DataDir, own_folder
from app.errors import NotFound
from app.failures import disk_failures
from app.heartbeat import beat
from app.model.smollm2 import SmolLM2
from app.run.fetching import newest_valid
from app.run.layout import CheckpointName
from app.run.retention import quarantine, stopping_no_start
from app.run.view import RunView
from app.state.identity import RunRecord
from app.state.progress import STATE_FILE, Progress, read_progress
from app.state.snapshot import STATE_FILES, Expected, library_versions, restore
from app.state.weights import load_pretrained
from app.training.compute import Compute
from app.training.held_run import HeldRun

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Loaded(Expected):
    """A checkpoint of the run, whose state is in `model` and `optimizer` once it is judged."""

    model: SmolLM2
    optimizer: torch.optim.Optimizer

    def read(self, directory: Path, progress: Progress) -> None:
        restore(directory, self.model, self.optimizer)


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that was restored."""

    name: CheckpointName
    progress: Progress


def restore_newest(
    run: HeldRun,
    view: RunView,
    record: RunRecord,
    model: SmolLM2,
    optimizer: torch.optim.Optimizer,
) -> Resumed | None:
    """Load the newest valid checkpoint, or else the first weights: None then.

    Damaged checkpoints that are found on the way, and those of another run than that of `record`,
    are moved to quarantine, as far as the store lets them. Those that the store does not serve,
    while it serves others, are passed over. Raises IncompatibleRun for a checkpoint
    of another model or optimizer.
    """
    job, settings = run.job, run.job.settings
    data_dir = DataDir(settings.data.data_dir)
    with disk_failures(data_dir.setting), own_folder(data_dir.restore) as scratch:
        # Loading is a part of the search: what turns out to be damaged there gives way to the
        # checkpoint before it, which overwrites all of what was loaded.
        expected = _Loaded(record, model, optimizer)
        found = newest_valid(run.store, view, scratch, STATE_FILES, beat, expected)
        if found is None:
            if job.init:
                if job.init.directory is None:
                    raise NotFound(f"{run.store.uri} has lost its checkpoints since this start")
                with disk_failures(f"INIT_FROM={settings.model.init_from}"):
                    load_pretrained(job.init.directory, model)
            else:
                model.initialize(settings.run.seed, settings.model.init)
            torch.manual_seed(settings.run.seed)
            return None
        with disk_failures(str(found.directory)):
            progress = read_progress(found.directory / STATE_FILE)
    for name, reason in found.unserved:
        # To be moved, it would have to be read. What is committed next makes it late.
        log.error("CHECKPOINT %s PASSED OVER, and left where it is: %s", name, reason)
    for name, reason in found.damaged:
        # The attempt's own file, which is written next, makes it late wherever it lies.
        with stopping_no_start(f"DAMAGED CHECKPOINT {name} could not be moved aside ({reason})"):
            target = quarantine(run.store, name, reason, run.lease)
            moved = "moved to" if run.store.deletes else "has to stay, and is entered in"
            log.error("DAMAGED CHECKPOINT %s %s %s: %s", name, moved, target, reason)
    before = progress.optimizer | {"document_mask": progress.document_mask}
    now = settings.optimizer.model_dump() | {"document_mask": settings.data.document_mask}
    for key in sorted(set(before) & set(now)):
        if before[key] != now[key]:
            log.warning("%s changed during the run: %s, was %s", key.upper(), now[key], before[key])
    _say_other_surroundings(progress, run.job.compute)
    return Resumed(found.name, progress)


def _say_other_surroundings(before: Progress, compute: Compute) -> None:
    """One line about what is another one than when the checkpoint was made, and may change bits."""
    made_with = {**before.versions, "PRECISION": before.precision, "device": before.device}
    now = {**library_versions(), "PRECISION": compute.precision, "device": compute.device_name}
    changes = [
        f"{name} {now[name]} (was {was})"
        for name, was in made_with.items()
        if was is not None and name in now and now[name] != was
    ]
    if changes:
        log.warning("changed since the checkpoint was made: %s", ", ".join(changes))
