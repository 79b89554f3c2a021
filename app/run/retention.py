"""What stays in the store, what is deleted, and what is moved to quarantine.

Nothing is deleted before its successor is committed. The lease is looked at before each thing
that is moved or deleted. So a process that has lost the run without knowing it leaves alone what
its successor writes.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pydantic import Field

from app.errors import AccessDenied, ConfigError, Damaged, IncompatibleRun, Unavailable, Unserved
from app.run.checkpoints import Manifest, read_manifest, write_latest
from app.run.clock import utc_now
from app.run.layout import CHECKPOINTS, MANIFEST, QUARANTINE, REASON, CheckpointName, of_a_run
from app.run.lease import WriteRight
from app.run.view import CheckpointState, RunView
from app.stores.contract import HalfWritten, Store
from app.stores.documents import Document

log = logging.getLogger(__name__)

_NOT_CLEANED_UP = "what earlier attempts left was not all cleaned up"


def prune(
    store: Store,
    view: RunView,
    keep_top: int,
    protected: Sequence[CheckpointName],
    lease: WriteRight,
) -> list[CheckpointName]:
    """Delete the superfluous checkpoints, and uploads of this attempt that were given up.

    Of each checkpoint the manifest is deleted first, so that a half-deleted folder is not taken
    for a checkpoint. Returns the names of the checkpoints that were deleted: none where the store
    deletes nothing.
    """
    if not store.deletes:
        return []
    doomed = superfluous(store, view, keep_top, protected)
    newest = view.committed[0] if view.committed else None
    given_up = [
        name
        for name in view.without_manifest
        if newest and name < newest and name.epoch == newest.epoch
    ]
    delete(store, [*doomed, *given_up], lease)
    return doomed


def delete(store: Store, names: Sequence[CheckpointName], lease: WriteRight) -> None:
    """Delete these checkpoints, of each the manifest first."""
    for name in names:
        lease.check()
        store.delete([name.key(MANIFEST)])
        store.delete([info.key for info in store.list(name.key())])


def superfluous(
    store: Store, view: RunView, keep_top: int, protected: Sequence[CheckpointName]
) -> list[CheckpointName]:
    """All but the best `keep_top` by train loss, the newest, and the `protected` ones."""
    manifests: dict[CheckpointName, Manifest] = {}
    for name in view.committed:
        try:
            manifests[name] = read_manifest(store, name)
        except (Damaged, IncompatibleRun, Unserved) as error:
            log.warning("checkpoint %s is left alone: %s", name, error)
    if not manifests:
        return []
    ranked = sorted(manifests, key=lambda name: (_loss(manifests[name]), -name.step))
    return sorted(set(manifests) - {*ranked[:keep_top], max(manifests), *protected})


def clean_up(store: Store, view: RunView, epoch: int, lease: WriteRight) -> None:
    """Put in order what earlier attempts left. `epoch` is that of the caller's lease.

    Where the store deletes nothing, it stays: no start takes it for a checkpoint of the run.
    """
    if store.deletes:
        _clear_up(store, view, epoch, lease)
    with stopping_no_start(_NOT_CLEANED_UP):
        for half in abandoned_writes(store, epoch):
            lease.check()
            store.discard(half)


def _clear_up(store: Store, view: RunView, epoch: int, lease: WriteRight) -> None:
    with stopping_no_start(_NOT_CLEANED_UP):
        for name in set_late_aside(store, view, lease):
            log.error("LATE CHECKPOINT %s moved aside: another attempt had gone on before it", name)
    with stopping_no_start(_NOT_CLEANED_UP):
        for name in view.of_state(CheckpointState.LEAVING):
            move_aside(store, name, lease)
            log.warning("the rest of %s moved to quarantine: that had been cut short", name)
    with stopping_no_start(_NOT_CLEANED_UP):
        for name in remove_unfinished(store, view, epoch, lease):
            log.info("removed an upload that was cut short: %s", name)


@contextmanager
def stopping_no_start(what: str) -> Iterator[None]:
    """Putting in order what earlier attempts left stops no start: the next one tries again.

    Where the store refuses, `what` is logged with the reason.
    """
    try:
        yield
    except (AccessDenied, ConfigError, Unavailable) as error:
        log.warning("%s: %s", what, error)


class Reason(Document):
    """reason.json: why a checkpoint was set aside, and when."""

    reason: str = Field(max_length=10_000)
    set_aside_at: str = Field(max_length=40)


def quarantine(store: Store, name: CheckpointName, reason: str, lease: WriteRight) -> str:
    """Move a damaged checkpoint aside: first the reason, then manifest and files.

    With the reason in its place, a folder whose move was cut short is not taken for an upload
    that was cut short. Where the store deletes nothing, only the reason is written. Returns the
    folder in quarantine. Raises Fenced, and the store's errors.
    """
    explanation = {"checkpoint": str(name), "reason": reason, "set_aside_at": utc_now()}
    lease.check()
    # If there is a reason already, this move was begun before: the first reason stays.
    content = json.dumps(explanation, indent=1).encode()
    store.put_if_absent(name.quarantine_key(REASON), content)
    if store.deletes:
        move_aside(store, name, lease)
    return name.quarantine_key().removesuffix("/")


def remove_unfinished(
    store: Store, view: RunView, epoch: int, lease: WriteRight
) -> list[CheckpointName]:
    """Delete uploads that were cut short, of attempts before the one of `epoch`."""
    unfinished = view.of_state(CheckpointState.UNFINISHED)
    names = [name for name in unfinished if name.epoch < epoch]
    delete(store, names, lease)
    return names


def abandoned_writes(store: Store, epoch: int) -> list[HalfWritten]:
    """Half-written objects that no living process is writing.

    The name of a checkpoint tells the epoch of its writer, which is dead if that is below
    `epoch`. Other names of a run say nothing about their writer: there the age decides. Whatever
    has a name that no run has is somebody else's.
    """
    return [half for half in store.half_written() if _abandoned(half, epoch)]


def set_late_aside(store: Store, view: RunView, lease: WriteRight) -> Sequence[CheckpointName]:
    """Move to quarantine the checkpoints of processes that had lost the run."""
    if view.latest in [str(name) for name in view.late]:
        write_latest(view.committed[0] if view.committed else None, lease)
    for name in view.late:
        reason = "committed after another attempt had gone on from an earlier step"
        quarantine(store, name, reason, lease)
    return view.late


def _abandoned(half: HalfWritten, epoch: int) -> bool:
    place, _, folder = half.folder.rpartition("/")
    name = CheckpointName.parse(folder) if place in (CHECKPOINTS, QUARANTINE) else None
    if name is not None:
        return name.epoch < epoch
    return half.stale and of_a_run(half.key)


def move_aside(store: Store, name: CheckpointName, lease: WriteRight) -> None:
    """Move what is left of a checkpoint to quarantine: its manifest first."""
    keys = [info.key for info in store.list(name.key())]
    for key in sorted(keys, key=lambda key: key != name.key(MANIFEST)):
        lease.check()
        store.move(key, name.quarantine_key(key.removeprefix(name.key())))


def _loss(manifest: Manifest) -> float:
    return float("inf") if manifest.train_loss is None else manifest.train_loss
