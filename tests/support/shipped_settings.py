"""What the shipped files (compose, .env.example, manifests) set, as the job would read it."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from app.settings.combined import Settings
from app.settings.load import load_settings
from app.settings.variables import variables

KNOWN = {variable.name for variable in variables()}
# The names that boto3, the hub client and the trackers' libraries read.
FOREIGN = re.compile(r"(AWS|HF|WANDB|MLFLOW)_[A-Z0-9_]+")
# How long before SIGKILL the job plans to be done.
GRACE_MARGIN_SECONDS = 5


def unknown_variables(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name not in KNOWN and not FOREIGN.fullmatch(name))


def settings_of(values: dict[str, str], monkeypatch: pytest.MonkeyPatch, empty: Path) -> Settings:
    """The settings that a process with just these variables would have."""
    for name in [name for name in os.environ if name in KNOWN or FOREIGN.fullmatch(name)]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(empty)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return load_settings()
