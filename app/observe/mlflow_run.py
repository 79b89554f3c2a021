"""The run on an MLflow server.

The server gives a run its id, and takes a second value for a step as well as the first. So the run
is found by a tag if its id was not kept, and the steps that it has are asked for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from app.errors import AccessDenied, AppError, ConfigError, Unavailable
from app.failures import first_line
from app.observe.rows import Row
from app.observe.tracking import CheckpointLink, Ending, Measured, values_of
from app.run.tracked_run import TrackedRun
from app.settings.trackers import TRACKED_AS, TrackerNames, set_defaults_of_trackers

_TAG = "smollm2.run"
_MOST_METRICS = 1_000  # that the server takes at once
_MOST_PARAMS = 100
_LONGEST_PARAM = 6_000  # characters
_DENIED = ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED")
_WRONG = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "ENDPOINT_NOT_FOUND", "INVALID_STATE")
_STATES: Mapping[Ending, str] = {
    "finished": "FINISHED",
    "preempted": "KILLED",
    "failed": "FAILED",
}


class MlflowRun:
    """See `app.observe.tracking.Service`."""

    name = "mlflow"

    def __init__(
        self,
        run_name: str,
        tracked: Callable[[], TrackedRun],
        remember: Callable[[TrackedRun, str], None],
        names: TrackerNames,
        config: Mapping[str, str],
    ) -> None:
        """`remember` keeps the id that the server gives. `config` are the settings without
        secrets."""
        self._run_name, self._tracked, self._remember = run_name, tracked, remember
        self._names, self._config = names, config
        self._client: Any = None
        self._id = ""

    def connect(self) -> set[int]:
        set_defaults_of_trackers()
        from mlflow import MlflowClient

        tracked = self._tracked()
        with _failures():
            self._client = MlflowClient(tracking_uri=self._names.mlflow_tracking_uri)
            run = self._find(tracked) or self._begin(tracked)
            self._id = run.info.run_id
            if run.info.lifecycle_stage == "deleted":
                raise ConfigError(
                    f"the run {self._id} was deleted in MLflow: restore it there, and the next "
                    "attempt sends what it lacks"
                )
            if self._id != tracked.mlflow_run_id:
                self._remember(tracked, self._id)
            self._client.update_run(self._id, status="RUNNING")
            self._describe(run.data.params, run.data.tags)
            return {metric.step for metric in self._client.get_metric_history(self._id, "loss")}

    @property
    def place(self) -> str:
        return f"run {self._id} at {self._names.mlflow_tracking_uri}"

    def send(self, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        metrics = []
        for row in rows:
            # The loss is last: a row whose loss the server has is there completely.
            for name, value in sorted(values_of(row).items(), key=lambda item: item[0] == "loss"):
                metrics.append(Metric(name, float(value), int(row.time * 1000), row.step))
        with _failures():
            for start in range(0, len(metrics), _MOST_METRICS):
                self._client.log_batch(self._id, metrics=metrics[start : start + _MOST_METRICS])

    def link(self, checkpoint: CheckpointLink) -> None:
        told = {"step": checkpoint.step, "uri": checkpoint.uri, "sha256": checkpoint.sha256}
        self._tag({f"checkpoint.{key}": str(value) for key, value in told.items()})

    def measured(self, result: Measured) -> None:
        from mlflow.entities import Metric

        at, step = int(result.time * 1000), result.step
        metrics = [Metric(name, value, at, step) for name, value in result.values.items()]
        with _failures():
            self._client.log_batch(self._id, metrics=metrics)

    def end(self, how: Ending) -> None:
        with _failures():
            self._client.set_terminated(self._id, status=_STATES[how])

    def _find(self, tracked: TrackedRun) -> Any:
        """None if the server has no such run."""
        from mlflow.exceptions import MlflowException

        if tracked.mlflow_run_id:
            try:
                return self._client.get_run(tracked.mlflow_run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        found = self._client.search_runs(
            [self._experiment()], filter_string=f"tags.`{_TAG}` = '{tracked.name}'"
        )
        return found[0] if found else None

    def _begin(self, tracked: TrackedRun) -> Any:
        title = tracked.title(self._run_name)
        return self._client.create_run(
            self._experiment(), run_name=title, tags={_TAG: tracked.name}
        )

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        if self._names.mlflow_experiment_id:
            return self._names.mlflow_experiment_id
        name = self._names.mlflow_experiment_name or TRACKED_AS
        if (known := self._client.get_experiment_by_name(name)) is not None:
            return str(known.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(self._client.get_experiment_by_name(name).experiment_id)

    def _describe(self, known: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Parameters never change on the server, so a setting that did is a tag beside them."""
        from mlflow.entities import Param

        config = {name: value[:_LONGEST_PARAM] for name, value in self._config.items()}
        new = [Param(name, value) for name, value in config.items() if name not in known]
        for start in range(0, len(new), _MOST_PARAMS):
            self._client.log_batch(self._id, params=new[start : start + _MOST_PARAMS])
        self._tag(
            {
                f"now.{name}": value
                for name, value in config.items()
                if (name in known and known[name] != value) or f"now.{name}" in tags
            }
        )

    def _tag(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        if tags:
            with _failures():
                listed = [RunTag(name, value) for name, value in tags.items()]
                self._client.log_batch(self._id, tags=listed)


@contextmanager
def _failures() -> Iterator[None]:
    """Says what the client raises in our words. Raises AccessDenied, ConfigError, Unavailable."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except AppError:
        raise
    except MlflowException as error:
        what = first_line(error)
        code = str(error.error_code)
        if code in _DENIED or " 401 " in f"{what} " or " 403 " in f"{what} ":
            raise AccessDenied(
                f"MLflow refuses ({what}): set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME "
                "and MLFLOW_TRACKING_PASSWORD, to what may write to this experiment"
            ) from error
        if code in _WRONG:
            raise ConfigError(f"MLflow refuses ({what}): look at MLFLOW_TRACKING_URI") from error
        raise Unavailable(f"MLFLOW_TRACKING_URI cannot be used now ({what})") from error
