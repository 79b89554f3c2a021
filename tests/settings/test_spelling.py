"""Misspelled names of variables, and names that only look like one."""

from pathlib import Path

import pytest

from app.settings.load import load_settings
from tests.support.refused_settings import problems

pytestmark = pytest.mark.usefixtures("nothing_set")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("TOTAL_STEP", "TOTAL_STEPS"),
        ("TOTAL_STPES", "TOTAL_STEPS"),
        ("BATCHSIZE", "BATCH_SIZE"),
        ("LR_SCHEDULER", "LR_SCHEDULE"),
        ("CHECKPOINT_EVERY", "CHECKPOINT_EVERY_STEPS"),
        ("MODLE", "MODEL"),
        ("modle", "MODEL"),
        ("DATSET", "DATASET"),
        ("TOKENISER", "TOKENIZER"),
        ("PRECISSION", "PRECISION"),
    ],
)
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_a_misspelled_name_is_reported_with_the_nearest_one(
    name: str, nearest: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == ".env":
        Path(".env").write_text(f"{name}=7\n")
    else:
        monkeypatch.setenv(name, "7")
    assert problems() == f"{name} is not a variable of this job; did you mean {nearest}?"


def test_foreign_names_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COMPILER", "MODELS", "DATABASE", "SERVICE", "SPEED", "LOGGER"):
        monkeypatch.setenv(name, "x")
    for name in ("HOME", "MODE", "AWS_REGION", "HF_TOKEN", "KUBERNETES_PORT", "LOGNAME", "SHLVL"):
        monkeypatch.setenv(name, "x")
    load_settings()
