"""Config and tokenizer of a run, as its checkpoints keep them: for a start without the hub."""

import shutil
from pathlib import Path

from app.errors import Damaged, NotFound
from app.run.checkpoints import read_manifest, stored_checkpoints
from app.run.fetching import fetch
from app.state.snapshot import STATE_FILES
from app.stores.contract import Store


def copy_kept_files(store: Store, folder: Path) -> bool:
    """Copy them from the newest whole checkpoint into `folder`, which is made.

    The weights stay behind: they are not those of INIT_FROM. False if there is no such checkpoint.
    Raises IncompatibleRun, and the store's errors.
    """
    for stored in stored_checkpoints(store):
        if not stored.committed:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        try:
            names = set(read_manifest(store, stored.name).files) - {*STATE_FILES}
            source = fetch(store, stored.name, folder, only=sorted(names))
        except (Damaged, NotFound):
            continue
        if source != folder:  # a store on a volume gives its own folder
            for name in names:
                shutil.copyfile(source / name, folder / name)
        return True
    return False
