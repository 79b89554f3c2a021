"""What stays in the store, what goes, and what is moved aside.

Nothing is deleted before its successor is committed, and only by the holder of the lease.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from app.checkpoints import (
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
from app.errors import Damaged, IncompatibleRun
from app.stores import Store

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
    if doomed or given_up:
        lease.check()
    for name in [*doomed, *given_up]:
        _delete(store, name)
    return doomed


def quarantine(store: Store, name: CheckpointName, reason: str) -> str:
    """Move a damaged checkpoint aside, manifest first. Returns where it went."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    target = f"{QUARANTINE}/{name}-{stamp}"
    keys = [info.key for info in store.list(name.key())]
    for key in sorted(keys, key=lambda key: not key.endswith(f"/{MANIFEST}")):
        store.move(key, f"{target}/{key.rsplit('/', 1)[1]}")
    explanation = {"checkpoint": str(name), "reason": reason, "set_aside_at": stamp}
    store.put(f"{target}/reason.json", [json.dumps(explanation, indent=1).encode()])
    return target


def unfinished(store: Store) -> list[StoredCheckpoint]:
    """Uploads that were cut short.

    What LATEST names was whole once: without its manifest it is damaged, and stays.
    """
    latest = read_latest(store)
    return [
        stored
        for stored in stored_checkpoints(store)
        if not stored.finished and str(stored.name) != latest
    ]


def remove_unfinished(store: Store, epoch: int) -> list[CheckpointName]:
    """Delete uploads that were cut short, of attempts before the caller's, which has `epoch`.

    For the holder of the lease. One that has lost it without knowing finds its successor's
    upload in progress under a higher epoch, and leaves it alone.
    """
    names = [stored.name for stored in unfinished(store) if stored.name.epoch < epoch]
    for name in names:
        _delete(store, name)
    return names


def set_late_aside(store: Store) -> list[CheckpointName]:
    """Quarantine what processes committed that had lost the run. For the holder of the lease."""
    late = [stored.name for stored in stored_checkpoints(store) if stored.finished and stored.late]
    if late and read_latest(store) in [str(name) for name in late]:
        store.delete([LATEST])
    for name in late:
        quarantine(store, name, "committed after another attempt had gone on from an earlier step")
    return late


def _delete(store: Store, name: CheckpointName) -> None:
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
