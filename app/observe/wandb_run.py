"""The run in Weights & Biases.

A step cannot be logged twice there: the server knows the last one, and drops what is not newer. So
a run that is continued is told that step, and only later rows are sent. An offline run is a folder
of files that nobody continues: each attempt writes the whole run again, and removes what earlier
attempts have left, as it does with TensorBoard's.
"""

import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.errors import AccessDenied, Unavailable
from app.failures import first_line
from app.observe.rows import Row
from app.observe.tracking import CheckpointLink, Ending, Measured, values_of
from app.run.tracked_run import TrackedRun
from app.settings.trackers import TRACKED_AS, TrackerNames, set_defaults_of_trackers

log = logging.getLogger(__name__)

_EXIT_CODES: Mapping[Ending, int] = {"finished": 0, "preempted": 143, "failed": 1}


class WandbRun:
    """See `app.observe.tracking.Service`."""

    name = "wandb"

    def __init__(
        self,
        run_name: str,
        tracked: Callable[[], TrackedRun],
        names: TrackerNames,
        directory: Path,
        config: Mapping[str, str],
        finish_seconds: float,
        init_seconds: float = 30.0,
    ) -> None:
        """`config` are the settings without secrets. Files go to `directory`, or to WANDB_DIR.
        The server has `init_seconds` to answer, and at the end the last rows have `finish_seconds`
        to reach it."""
        self._run_name, self._tracked, self._names = run_name, tracked, names
        self._directory, self._config = directory, config
        self._finish_seconds, self._init_seconds = finish_seconds, init_seconds
        self._run: Any = None
        self._linked: CheckpointLink | None = None

    def connect(self) -> range:
        settings = quiet_settings()
        import wandb
        from wandb.errors import Error

        tracked = self._tracked()
        settings.init_timeout, settings.finish_timeout = self._init_seconds, self._finish_seconds
        if not self._names.wandb_dir:
            self._directory.mkdir(parents=True, exist_ok=True)
            settings.root_dir = str(self._directory)
        offline = wandb.setup(quiet_settings()).settings.mode in ("offline", "dryrun")
        try:
            self._run = wandb.init(
                project=self._names.wandb_project or TRACKED_AS,
                id=tracked.name,
                name=tracked.title(self._run_name),
                resume=None if offline else "allow",
                config={**self._config},
                allow_val_change=True,
                settings=settings,
                reinit="create_new",
            )
        except (Error, TimeoutError, ValueError) as error:
            wandb.teardown()  # it would take the next try for a second run of the same id
            raise _failure(error) from error
        self._remove_former(tracked.name)
        return range(self._run.starting_step)

    @property
    def place(self) -> str:
        where = self._run.url or self._run.settings.sync_dir
        return f"run {self._run.id}, {where}"

    def send(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._run.log({**values_of(row), "_timestamp": row.time}, step=row.step, commit=True)

    def link(self, checkpoint: CheckpointLink) -> None:
        self._linked = checkpoint
        told = {"step": checkpoint.step, "uri": checkpoint.uri, "sha256": checkpoint.sha256}
        self._run.summary.update({f"checkpoint/{key}": value for key, value in told.items()})

    def measured(self, result: Measured) -> None:
        """In the summary, since the history takes no more values for a step that is over."""
        self._run.summary.update({**result.values, "measured/step": result.step})

    def end(self, how: Ending) -> None:
        """The last checkpoint of the attempt becomes an artifact, by reference: nothing is sent."""
        import wandb

        if (link := self._linked) is not None:
            artifact = wandb.Artifact(
                f"checkpoint-{self._run.id}",
                type="model",
                metadata={"step": link.step, "sha256": link.sha256},
            )
            artifact.add_reference(link.uri, name=f"step-{link.step}", checksum=False)
            self._run.log_artifact(artifact)
        if how == "preempted":
            self._run.mark_preempting()
        self._run.finish(exit_code=_EXIT_CODES[how])
        wandb.teardown()  # returns once W&B's own process has written its files to the end

    def _remove_former(self, name: str) -> None:
        """Files of earlier attempts: this one's hold the whole run, or the server has it."""
        current = Path(self._run.settings.sync_dir)
        for former in current.parent.glob(f"*run-*-{name}"):
            if former != current and former.is_dir():
                shutil.rmtree(former, ignore_errors=True)


def _failure(error: Exception) -> AccessDenied | Unavailable:
    """What `wandb.init` raised, in our words. A key that a server refuses is no error of its own
    kind there."""
    from wandb.errors import AuthenticationError, CommError

    what = first_line(error)
    away = isinstance(error, CommError | TimeoutError) and not re.search(r"\b40[13]\b", what)
    if isinstance(error, AuthenticationError) or not away:
        return AccessDenied(
            f"W&B refuses ({what}): set WANDB_API_KEY, and WANDB_ENTITY and WANDB_PROJECT to what "
            "that key may write to"
        )
    return Unavailable(f"W&B cannot be reached ({what})")


def has_credentials() -> bool:
    """Whether W&B needs none, or has some: a variable, a token file or a netrc file. Asks nobody,
    neither a server nor the user."""
    settings = quiet_settings()
    import wandb

    session = wandb.setup(settings)
    if session.settings.mode not in ("online", "run", "shared"):
        return True
    return bool(wandb.login(prompt=False, verify=False))


def quiet_settings() -> Any:
    """Nothing on the terminal, and of this machine nothing is told: the command line may hold
    what is no one else's business, and so may the address of a git remote."""
    set_defaults_of_trackers()
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
