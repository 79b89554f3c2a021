"""`run repair`: run.json made again from a checkpoint. `run track` is in `tracking`."""

import argparse
import logging

from app.cli.arguments import Commands
from app.cli.confirmation import confirmed
from app.cli.named_run import lease_of_a_command, named_stores, scratch_folder, the_one
from app.cli.tracking import track_run
from app.errors import ConfigError, Damaged
from app.printable import show
from app.run.fetching import newest_valid
from app.run.layout import RECORD
from app.run.record import load_record
from app.run.view import RunView, read_view_without_record
from app.settings.combined import Settings
from app.state.identity import RunRecord
from app.stores.contract import Store
from app.stores.documents import encode_document
from app.training.preemption import StopRequest

log = logging.getLogger(__name__)


def add_commands(commands: Commands) -> None:
    verbs = commands.group("run", "repair what says what a run is; tell trackers about it")
    repair = verbs.add("repair", repair_run, "make a lost or damaged run.json from a checkpoint")
    repair.add_argument("--yes", action="store_true", help="without asking")
    verbs.add("track", track_run, "send the trackers of LOGGERS (W&B, MLflow) what they lack")


def repair_run(settings: Settings, arguments: argparse.Namespace, stop: StopRequest) -> None:
    """Write run.json as the newest valid checkpoint says it, under the run's lease.

    Raises ConfigError where run.json is whole, and what reading checkpoints and the lease raise.
    """
    store, view = _run_with_checkpoints(settings)
    name, record = _record_in_checkpoint(store, view, settings)
    _check_needed(store, record)
    identity = record.identity
    confirmed(
        f"{store.uri}/{RECORD} would be written as {name} says it: MODEL={identity.model} "
        f"DATASET={identity.dataset} TOKENIZER={identity.tokenizer} SEQ_LEN={identity.seq_len} "
        f"GLOBAL_BATCH_SIZE={identity.global_batch_size} SEED={identity.seed}, target step "
        + ", extended to ".join(map(str, record.horizons)),
        arguments.yes,
    )
    with lease_of_a_command(store, settings, stop, view.highest_epoch) as lease:
        _check_needed(store, record)
        lease.put(RECORD, encode_document(record))
    show(f"{store.uri}/{RECORD}")


def _run_with_checkpoints(settings: Settings) -> tuple[Store, RunView]:
    views = [(store, read_view_without_record(store)) for store in named_stores(settings)]
    found = [(store, view) for store, view in views if view.committed]
    store, view = the_one(found, settings, "checkpoint of a run")
    store.check()
    return store, view


def _check_needed(store: Store, record: RunRecord) -> None:
    """Raises ConfigError if run.json can be read and knows all that the checkpoint does."""
    try:
        stored = load_record(store)
    except Damaged as error:
        log.warning("%s", error)
        return
    if stored is not None and record.target <= stored.record.target:
        raise ConfigError(f"{store.uri}/{RECORD} is there and can be read: nothing to repair")


def _record_in_checkpoint(store: Store, view: RunView, settings: Settings) -> tuple[str, RunRecord]:
    """The name of the newest valid checkpoint, and the run that it says it is of."""
    from app.state.progress import STATE_FILE, read_progress
    from app.state.snapshot import STATE_FILES, Expected

    with scratch_folder(settings) as scratch:
        found = newest_valid(store, view, scratch, STATE_FILES, expected=Expected(None))
        assert found is not None  # `_run_with_checkpoints` saw one
        for damaged, reason in found.damaged:
            log.warning("%s is damaged and passed over: %s", damaged, reason)
        for unserved, reason in found.unserved:
            log.warning("%s is passed over: %s", unserved, reason)
        run = read_progress(found.directory / STATE_FILE).run
    if run is None:
        raise ConfigError(
            f"{found.name} was made by a version that did not write into it what the run is: "
            f"restore {store.uri}/{RECORD} from a backup, or choose another RUN_NAME"
        )
    return str(found.name), run.model_copy(update={"run_name": store.uri.rsplit("/", 1)[-1]})
