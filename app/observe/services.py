"""The trackers that LOGGERS names and that are told over a network: checked, then opened."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from app.errors import ConfigError
from app.observe.mlflow_run import MlflowRun
from app.observe.rows import Row
from app.observe.tracking import CheckpointLink, Limits, Sender, Service, Tracking
from app.observe.wandb_run import WandbRun, has_credentials
from app.run.checkpoints import Manifest
from app.run.layout import CheckpointName
from app.run.tracked_run import remember_mlflow_run, tracked_run
from app.settings.calling import how_to_install
from app.settings.combined import Settings
from app.settings.variables import variables
from app.stores.contract import ReadableStore, Store

_WEIGHTS = "model.safetensors"


def check_trackers(settings: Settings) -> None:
    """Raises ConfigError, with the command that helps, where a package or a key is missing.

    No server is asked: one that is away, or refuses, stops no training.
    """
    for name in wanted_trackers(settings):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"LOGGERS={settings.logs.loggers} needs the package {name}, which is not "
                f"installed: {how_to_install('trackers', settings.logs.started_by)}"
            )
        if name == WandbRun.name and not has_credentials():
            raise ConfigError(
                "LOGGERS=wandb, and W&B has no key here: set WANDB_API_KEY, or WANDB_MODE=offline "
                "to keep what it shows in files"
            )


def open_tracking(
    settings: Settings,
    run_name: str,
    store: Store,
    directory: Path,
    earlier: Sequence[Row],
    still_ours: Callable[[], bool] = lambda: True,
    limits: Limits | None = None,
    finish_seconds: float = 8.0,
) -> Tracking:
    """Begin to tell the trackers of the run in `store` what they lack of the rows `earlier`.

    `directory` is the run's folder of logs. See `Sender` for `still_ours`, and `WandbRun` for
    `finish_seconds`.
    """
    config = {variable.name: settings.shown(variable) for variable in variables()}
    tracked = partial(tracked_run, store)
    services: list[Service] = []
    for name in wanted_trackers(settings):
        if name == WandbRun.name:
            services.append(
                WandbRun(run_name, tracked, settings.trackers, directory, config, finish_seconds)
            )
        else:
            remember = partial(remember_mlflow_run, store)
            services.append(MlflowRun(run_name, tracked, remember, settings.trackers, config))
    return Tracking([Sender(service, earlier, limits, still_ours) for service in services])


def link_to(store: ReadableStore, name: CheckpointName, manifest: Manifest) -> CheckpointLink:
    uri = f"{store.uri}/{name.key()}".rstrip("/")
    return CheckpointLink(name.step, uri, manifest.files[_WEIGHTS].sha256)


def wanted_trackers(settings: Settings) -> Iterator[str]:
    """Those of LOGGERS that are told over a network."""
    wanted = settings.logs.loggers.split(",")
    yield from (name for name in (WandbRun.name, MlflowRun.name) if name in wanted)
