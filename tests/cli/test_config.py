"""The config command: every variable with its source, and the table of docs/variables.md."""

import re

import pytest

from app.cli import parser as cli
from app.cli.config import variable_table
from app.settings.presets import RECIPES
from app.settings.variables import variables
from tests.support.repository import ROOT

pytestmark = pytest.mark.usefixtures("nothing_set")


def test_config_prints_every_variable_with_its_source(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEED", "9")
    assert cli.main(["config", "--total_steps", "7"]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert set(rows) == {variable.name for variable in variables()}
    assert rows["SEED"] == ["9", "environment"]
    assert rows["TOTAL_STEPS"] == ["7", "flag"]
    assert rows["ADAM_BETA1"] == ["0.9", "default"]


@pytest.mark.parametrize(
    ("device", "batch"),
    [("cpu", [str(RECIPES["tiny"]["BATCH_SIZE"]), "preset"]), ("cuda", ["2", "default"])],
)
def test_config_shows_the_defaults_of_the_model_that_is_meant_here(
    device: str, batch: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["config", "--device", device]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["BATCH_SIZE"] == batch
    assert cli.main(["config", "--device", device, "--init_from", "a/b"]) == 0
    assert re.search(r"^BATCH_SIZE +2 +default$", capsys.readouterr().out, re.MULTILINE)


def test_the_table_in_the_pages_is_the_generated_one() -> None:
    assert variable_table() in (ROOT / "docs" / "variables.md").read_text("utf-8"), (
        "docs/variables.md is stale: replace its table by what `python -m app config --markdown` "
        "prints"
    )
