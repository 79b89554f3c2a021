"""The run that the settings name, for commands that look at it."""

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from app.data.data_dir import DataDir
from app.errors import ConfigError, Damaged, NotFound, Unavailable
from app.run.lease import Doing, Lease, holder_identity
from app.run.record import load_record
from app.run.view import read_view_without_record
from app.settings.combined import Settings
from app.stores.contract import Store
from app.stores.opening import open_store
from app.training.preemption import StopRequest

T = TypeVar("T")

log = logging.getLogger(__name__)


def existing_run(settings: Settings) -> Store:
    """The store of the run that the settings name; with MODEL=auto, of the one that exists.

    Raises NotFound where there is none, Damaged where only its record is missing, and ConfigError
    where both names of MODEL=auto exist.
    """
    stores = named_stores(settings)
    existing = [store for store in stores if load_record(store) is not None]
    if not existing and (lost := [s.uri for s in stores if read_view_without_record(s).committed]):
        raise Damaged(
            f"{lost[0]} holds checkpoints, but no run.json: make it again with `python -m app run "
            "repair`"
        )
    return the_one(existing, settings, "run")


def named_stores(settings: Settings) -> list[Store]:
    """A store for each name that the run may have."""
    uri = settings.checkpoints.checkpoint_uri
    return [open_store(uri, name) for name in settings.run_names]


def the_one(found: Sequence[T], settings: Settings, what: str) -> T:
    """What was found. Raises NotFound for nothing, ConfigError for both names of MODEL=auto."""
    uri, names = settings.checkpoints.checkpoint_uri, settings.run_names
    if not found:
        raise NotFound(f"{uri} holds no {what} named {' or '.join(names)}: set RUN_NAME")
    if len(found) > 1:
        raise ConfigError(f"{uri} holds the runs {' and '.join(names)}: set RUN_NAME")
    return found[0]


@contextmanager
def scratch_folder(settings: Settings) -> Iterator[Path]:
    """A folder for downloads: on the data volume, since /tmp may be memory."""
    data_dir = settings.data.data_dir
    DataDir(data_dir).take_temporary_files()
    parent = data_dir if os.access(data_dir, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix=".scratch-", dir=parent) as folder:
        yield Path(folder)


@contextmanager
def lease_of_a_command(
    store: Store, settings: Settings, stop: StopRequest, above: int
) -> Iterator[Lease]:
    """The right to write to the run while a command changes it. `above` is as in `Lease.acquire`,
    and so is what is raised."""
    checkpoints = settings.checkpoints
    lease = Lease(store, checkpoints.lease_ttl, holder_identity())
    lease.tells = lambda: Doing("being changed by a command")
    try:
        lease.acquire(checkpoints.lease_wait, log.info, lambda: stop.requested, above)
    except Unavailable as error:
        raise Unavailable(f"nothing was changed: {error}") from error
    try:
        lease.start_renewing()
        yield lease
    finally:
        lease.release()
