"""What stays in the store, what goes, and what is moved aside.

Nothing is deleted before its successor is committed. The lease is asked before each thing that
is moved or deleted: who has lost the run without knowing leaves its successor's alone.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from app.errors import Damaged, IncompatibleRun
from app.run.checkpoints import (
    FOLDER,
    LATEST,
    MANIFEST,
    CheckpointName,
    Held,
    Manifest,
    StoredCheckpoint,
    read_latest,
    read_manifest,
    stored_checkpoints,
)
from app.stores.contract import HalfWritten, Store

QUARANTINE = "quarantine"

log = logging.getLogger(__name__)


def prune(
    store: Store,
    keep_top: int,
    protected: Sequence[CheckpointName],
    lease: Held,
) -> list[CheckpointName]:
    """Delete all but the best `keep_top` by train loss, the newest, and the `protected` ones.

    Also deletes uploads of this attempt that were given up. The manifest goes first, so
    that a half-deleted folder is not taken for a checkpoint.
    """
    stored = stored_checkpoints(store)
    manifests = dict(_readable_manifests(store, stored))
    if not manifests:
        return []
    ranked = sorted(manifests, key=lambda name: (_loss(manifests[name]), -name.step))
    newest = max(manifests)
    keep = {*ranked[:keep_top], newest, *protected}
    doomed = sorted(set(manifests) - keep)
    given_up = [
        upload.name
        for upload in stored
        if not upload.finished and upload.name < newest and upload.name.epoch == newest.epoch
    ]
    for name in [*doomed, *given_up]:
        _delete(store, name, lease)
    return doomed


def clean_up(store: Store, epoch: int, lease: Held) -> None:
    """Put in order what earlier attempts left. `epoch` is that of the caller, who has the lease."""
    for name in set_late_aside(store, lease):
        log.error("LATE CHECKPOINT %s moved aside: another attempt had gone on before it", name)
    for name in finish_quarantine(store, lease):
        log.warning("the rest of %s moved to quarantine: that had been cut short", name)
    for name in remove_unfinished(store, epoch, lease):
        log.info("removed an upload that was cut short: %s", name)
    for half in abandoned_writes(store, epoch):
        lease.check()
        store.discard(half)


def quarantine(store: Store, name: CheckpointName, reason: str, lease: Held) -> str:
    """Move a damaged checkpoint aside: reason, manifest, files. Returns where it went.

    The reason goes first, so that a move that is cut short is not taken for an upload that was.
    """
    target = f"{QUARANTINE}/{name}"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    explanation = {"checkpoint": str(name), "reason": reason, "set_aside_at": now}
    lease.check()
    # Where there is one, this move was begun before, and its reason was the first.
    store.put_if_absent(f"{target}/reason.json", json.dumps(explanation, indent=1).encode())
    _move_aside(store, name, lease)
    return target


def finish_quarantine(store: Store, lease: Held) -> list[CheckpointName]:
    """Move what a killed process left of checkpoints that it was moving aside."""
    begun = in_quarantine(store)
    names = [
        stored.name
        for stored in stored_checkpoints(store)
        if not stored.finished and str(stored.name) in begun
    ]
    for name in names:
        _move_aside(store, name, lease)
    return names


def unfinished(store: Store) -> list[StoredCheckpoint]:
    """Uploads that were cut short.

    What LATEST names was whole once: without its manifest it is damaged, and stays. So does
    what is on its way to quarantine.
    """
    kept = {read_latest(store), *in_quarantine(store)}
    return [
        stored
        for stored in stored_checkpoints(store)
        if not stored.finished and str(stored.name) not in kept
    ]


def remove_unfinished(store: Store, epoch: int, lease: Held) -> list[CheckpointName]:
    """Delete uploads that were cut short, of attempts before the caller's, which has `epoch`."""
    names = [stored.name for stored in unfinished(store) if stored.name.epoch < epoch]
    for name in names:
        _delete(store, name, lease)
    return names


def abandoned_writes(store: Store, epoch: int) -> list[HalfWritten]:
    """What is half written of checkpoints of attempts before that of `epoch`.

    Other names say nothing about their writer: those are left until nobody has been at them for
    long.
    """
    return [half for half in store.half_written() if _abandoned(half, epoch)]


def set_late_aside(store: Store, lease: Held) -> list[CheckpointName]:
    """Quarantine what processes committed that had lost the run."""
    stored = stored_checkpoints(store)
    late = [checkpoint.name for checkpoint in stored if checkpoint.finished and checkpoint.late]
    if late and read_latest(store) in [str(name) for name in late]:
        left = next((checkpoint.name for checkpoint in stored if checkpoint.committed), "")
        lease.put(LATEST, f"{left}\n".encode())
    for name in late:
        reason = "committed after another attempt had gone on from an earlier step"
        quarantine(store, name, reason, lease)
    return late


def _abandoned(half: HalfWritten, epoch: int) -> bool:
    place, _, folder = half.folder.rpartition("/")
    name = CheckpointName.parse(folder) if place in (FOLDER, QUARANTINE) else None
    return half.stale if name is None else name.epoch < epoch


def in_quarantine(store: Store) -> set[str]:
    """The names of its folders."""
    return {info.key.split("/")[1] for info in store.list(f"{QUARANTINE}/")}


def _move_aside(store: Store, name: CheckpointName, lease: Held) -> None:
    keys = [info.key for info in store.list(name.key())]
    for key in sorted(keys, key=lambda key: not key.endswith(f"/{MANIFEST}")):
        lease.check()
        store.move(key, f"{QUARANTINE}/{name}/{key.rsplit('/', 1)[1]}")


def _delete(store: Store, name: CheckpointName, lease: Held) -> None:
    lease.check()
    store.delete([name.key(MANIFEST)])
    store.delete([info.key for info in store.list(name.key())])


def _readable_manifests(
    store: Store, stored: Sequence[StoredCheckpoint]
) -> Iterator[tuple[CheckpointName, Manifest]]:
    for name in [checkpoint.name for checkpoint in stored if checkpoint.committed]:
        try:
            yield name, read_manifest(store, name)
        except (Damaged, IncompatibleRun) as error:
            log.warning("checkpoint %s is left alone: %s", name, error)


def _loss(manifest: Manifest) -> float:
    return float("inf") if manifest.train_loss is None else manifest.train_loss
