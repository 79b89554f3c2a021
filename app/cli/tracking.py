"""`run track`: trackers that were away are sent what they lack, from the rows in the store."""

import argparse
import math
from collections.abc import Sequence

from app.cli.named_run import existing_run, lease_of_a_command
from app.data.data_dir import DataDir
from app.errors import ConfigError, NotFound, Unavailable
from app.observe.rows import stored_rows
from app.observe.services import check_trackers, link_to, open_tracking, wanted_trackers
from app.observe.tracking import Measured
from app.printable import show
from app.run.checkpoints import read_manifest
from app.run.record import load_record
from app.run.view import read_view
from app.settings.combined import Settings
from app.stores.contract import Store
from app.training.preemption import StopRequest

_UPLOAD_SECONDS = 600.0  # for the end of a run that has many rows


def track_run(settings: Settings, _: argparse.Namespace, stop: StopRequest) -> None:
    """Raises ConfigError where LOGGERS names no tracker, and what `bring_up_to_date` raises."""
    wanted = list(wanted_trackers(settings))
    if not wanted:
        raise ConfigError(
            f"LOGGERS={settings.logs.loggers or 'none'} names no tracker of others: set "
            "LOGGERS=wandb, LOGGERS=mlflow, or both"
        )
    store = existing_run(settings)
    bring_up_to_date(settings, store, stop)
    show(f"up to date: {', '.join(wanted)}")


def bring_up_to_date(
    settings: Settings, store: Store, stop: StopRequest, results: Sequence[Measured] = ()
) -> None:
    """Send the trackers of LOGGERS, if there are any, the rows that they lack, and `results`.

    Under the run's lease, since an attempt that trains tells its trackers itself. Raises
    ConfigError where a package or a key is missing, Unavailable if the run is being trained or if
    not all was sent, and the store's errors.
    """
    if not list(wanted_trackers(settings)):
        return
    check_trackers(settings)
    view = read_view(store)
    with lease_of_a_command(store, settings, stop, view.highest_epoch) as lease:
        view, stored = read_view(store), load_record(store)
        if stored is None:
            raise NotFound(f"{store.uri} holds no run")
        name = stored.record.run_name
        tracking = open_tracking(
            settings,
            name,
            store,
            DataDir(settings.data.data_dir).logs(name, store.place),
            [row for row in stored_rows(store) if row.step <= view.newest_step],
            lambda: not lease.lost,
            finish_seconds=_UPLOAD_SECONDS,
        )
        if view.committed:
            newest = view.committed[0]
            tracking.link(link_to(store, newest, read_manifest(store, newest)))
        for result in results:
            tracking.measured(result)
        finished = view.newest_step >= stored.record.target
        if not tracking.close("finished" if finished else "preempted", math.inf):
            raise Unavailable("not all trackers could be told (the lines above say why): try again")
