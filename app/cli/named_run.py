"""The run that the settings name, for commands that look at it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.data.data_dir import DataDir
from app.errors import ConfigError, Damaged, NotFound
from app.run.record import load_record
from app.run.view import read_view
from app.settings.combined import Settings
from app.stores.contract import Store
from app.stores.opening import open_store


def existing_run(settings: Settings) -> Store:
    """The store of the run that the settings name; with MODEL=auto, of the one that exists.

    Raises NotFound where there is none, Damaged where only its record is missing, and ConfigError
    where both names of MODEL=auto exist.
    """
    uri, names = settings.checkpoints.checkpoint_uri, settings.run_names
    stores = [open_store(uri, name) for name in names]
    existing = [store for store in stores if load_record(store) is not None]
    if not existing and (lost := [s.uri for s in stores if read_view(s, lambda _: None).committed]):
        raise Damaged(
            f"{lost[0]} holds checkpoints, but no run.json: make it again with `python -m app run "
            "repair`"
        )
    if not existing:
        raise NotFound(f"{uri} holds no run named {' or '.join(names)}: set RUN_NAME")
    if len(existing) > 1:
        raise ConfigError(f"{uri} holds the runs {' and '.join(names)}: set RUN_NAME")
    return existing[0]


@contextmanager
def scratch_folder(settings: Settings) -> Iterator[Path]:
    """A folder for downloads: on the data volume, since /tmp may be memory."""
    data_dir = settings.data.data_dir
    DataDir(data_dir).take_temporary_files()
    parent = data_dir if os.access(data_dir, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix=".scratch-", dir=parent) as folder:
        yield Path(folder)
