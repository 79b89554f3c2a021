"""How a checkpoint gets into the store: files first, then the manifest, then LATEST.

Only the manifest makes it a checkpoint, so a process that dies before that leaves none.
"""

import hashlib
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from app.errors import AccessDenied, ConfigError, Damaged, Unavailable
from app.run.checkpoints import FileEntry, Manifest, check_sizes, write_latest
from app.run.clock import utc_now
from app.run.layout import LATEST, MANIFEST, CheckpointName
from app.run.lease import WriteRight
from app.stores.contract import Data, Store

log = logging.getLogger(__name__)


def commit(
    store: Store,
    name: CheckpointName,
    files: Mapping[str, Data],
    train_loss: float | None,
    lease: WriteRight,
) -> Manifest:
    """Write a checkpoint of these files.

    The lease is looked at before the manifest is written, since from then on others see the
    checkpoint, and again before LATEST is. So the manifest that LATEST names was written while
    its writer held the run, and every successor has seen it. Raises Fenced, the store's errors,
    and Unavailable if the store lists other sizes than were written.
    """
    # SHA-256 of one file keeps one core busy, and two files hold nearly all bytes.
    with ThreadPoolExecutor(max_workers=2) as pool:
        entries = dict(zip(files, pool.map(_entry, files.values()), strict=True))
    for file, data in files.items():
        store.put(name.key(file), data)
    manifest = Manifest(
        step=name.step, epoch=name.epoch, train_loss=train_loss, created_at=utc_now(), files=entries
    )
    try:
        check_sizes(store, name, manifest)
    except Damaged as error:
        raise Unavailable(f"{store.uri} did not keep what was written: {error}") from error
    lease.check()
    store.put(name.key(MANIFEST), [manifest.model_dump_json(indent=1).encode()])
    try:
        write_latest(name, lease)
    except (AccessDenied, ConfigError, Unavailable) as error:
        # It is a hint: the checkpoint counts without it.
        log.warning("%s does not name %s yet: %s", LATEST, name, error)
    return manifest


def _entry(data: Data) -> FileEntry:
    digest, size = hashlib.sha256(), 0
    for buffer in data:
        digest.update(buffer)
        size += len(buffer)
    return FileEntry(size=size, sha256=digest.hexdigest())
