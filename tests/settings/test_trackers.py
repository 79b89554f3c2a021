"""What is wrong with the trackers' own variables is told before training, without their values."""

import pytest

from app.errors import ConfigError
from app.settings.load import load_settings
from app.settings.trackers import tracker_names, tracker_problems

URI = "http://mlflow.example.org:5000"


def test_mlflow_needs_the_address_of_a_server(
    nothing_set: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="LOGGERS=mlflow needs MLFLOW_TRACKING_URI"):
        load_settings({"loggers": "csv,mlflow"})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", URI)
    assert load_settings({"loggers": "csv,mlflow"}).trackers.mlflow_tracking_uri == URI


def test_a_value_that_cannot_be_right_is_told_without_the_value() -> None:
    given = {"WANDB_API_KEY": "secret\n", "MLFLOW_TRACKING_URI": f"'{URI}'"}
    problems = list(tracker_problems("wandb,mlflow", given))
    assert [problem.split()[0] for problem in problems] == ["WANDB_API_KEY", "MLFLOW_TRACKING_URI"]
    assert "secret" not in "".join(problems)


def test_only_those_of_a_tracker_that_is_wanted_are_looked_at() -> None:
    given = {"WANDB_API_KEY": " secret"}
    assert list(tracker_problems("tensorboard,csv", given)) == []
    assert len(list(tracker_problems("wandb", given))) == 1


def test_unset_names_are_empty() -> None:
    names = tracker_names({"WANDB_PROJECT": "mine"})
    assert (names.wandb_project, names.mlflow_tracking_uri) == ("mine", "")
