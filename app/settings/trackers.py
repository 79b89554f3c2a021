"""What W&B and MLflow read from the environment: their own names, which stay theirs.

Their libraries read these variables themselves, as boto3 reads AWS_*. The job looks at a few of
them: where there is no sensible default it says so before training begins.
"""

import os
from collections.abc import Iterator, Mapping

from pydantic import BaseModel, ConfigDict

TRACKED_AS = "smollm2"  # project of W&B and experiment of MLflow, where nobody names one
# MLflow's own defaults are minutes of silence before it says that a server is away, lines on stdout
# with the address as it was typed, and news of its use to its makers.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}
_PLAIN = (
    "WANDB_API_KEY",
    "WANDB_BASE_URL",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
)


class TrackerNames(BaseModel):
    """What the job has to know of them; "" for what is not set."""

    model_config = ConfigDict(frozen=True)

    wandb_project: str = ""
    wandb_dir: str = ""
    mlflow_tracking_uri: str = ""
    mlflow_experiment_name: str = ""
    mlflow_experiment_id: str = ""


def tracker_names(environment: Mapping[str, str]) -> TrackerNames:
    return TrackerNames(
        **{name: environment.get(name.upper(), "") for name in TrackerNames.model_fields}
    )


def tracker_problems(loggers: str, environment: Mapping[str, str]) -> Iterator[str]:
    """One line for each problem of the trackers that LOGGERS names. No value is shown: a slip of
    the hand puts a secret anywhere."""
    wanted = loggers.split(",")
    if "mlflow" in wanted and not environment.get("MLFLOW_TRACKING_URI"):
        yield (
            "LOGGERS=mlflow needs MLFLOW_TRACKING_URI, the address of the server, as "
            "http://mlflow.example.org:5000"
        )
    for name in _PLAIN:
        value = environment.get(name, "")
        if name.split("_")[0].lower() in wanted and value and _is_flawed(value):
            yield f"{name} (from the environment) cannot be used: it holds white space or quotes"


def _is_flawed(value: str) -> bool:
    return value != value.strip() or "\n" in value or value[0] in "'\"" or value[-1] in "'\""


def set_defaults_of_trackers() -> None:
    """Quick answers and quiet, for libraries that read them nowhere else; what is set stays."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
