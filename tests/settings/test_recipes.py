"""Defaults that a model brings: under what a user sets, over the general ones."""

from pathlib import Path
from typing import Any

import pytest

from app.errors import ConfigError
from app.settings.load import load_settings
from app.settings.presets import FOLLOW_TOKENIZER, PRESETS, RECIPES
from app.settings.recipes import with_recipe
from app.settings.variables import SECTIONS, variables

pytestmark = pytest.mark.usefixtures("nothing_set")

TINY = RECIPES["tiny"]


def test_a_model_brings_its_defaults_and_the_source_says_so() -> None:
    settings = load_settings({"model": "tiny"})
    for variable in variables():
        if variable.name in TINY:
            assert settings.value(variable) == TINY[variable.name]
        expected = "preset" if variable.name in TINY else "default"
        assert settings.sources[variable.name] == ("flag" if variable.name == "MODEL" else expected)
        assert settings.is_default(variable.name) == (variable.name != "MODEL")


def test_what_a_user_sets_wins_wherever_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("TOTAL_STEPS=5\nMODEL=tiny\n")
    monkeypatch.setenv("LEARNING_RATE", "0.5")
    settings = load_settings({"batch_size": "4"})
    assert (settings.run.total_steps, settings.sources["TOTAL_STEPS"]) == (5, "file")
    assert (settings.optimizer.learning_rate, settings.batch.batch_size) == (0.5, 4)
    assert settings.sources["VAL_EVERY_STEPS"] == "preset"
    again = with_recipe(settings, "tiny")
    assert again == settings


def test_a_value_that_is_the_general_default_is_still_the_users() -> None:
    assert load_settings({"model": "tiny", "total_steps": "5000"}).run.total_steps == 5000


@pytest.mark.parametrize("model", sorted(set(PRESETS) - {"tiny"}))
def test_a_published_model_keeps_the_general_defaults_and_its_embedding(model: str) -> None:
    named, unnamed = load_settings({"model": model}), load_settings()
    for variable in variables():
        if variable.name != "MODEL":
            assert named.value(variable) == unnamed.value(variable)
            assert named.sources[variable.name] == "default"
    assert model not in FOLLOW_TOKENIZER
    assert PRESETS[model].vocab_size == 49_152


def test_the_recipe_is_made_of_values_that_a_user_could_set() -> None:
    names = {variable.name: variable for variable in variables()}
    for name, value in TINY.items():
        typed: dict[str, Any] = {name.lower(): str(value)}
        section = SECTIONS[names[name].section](**typed)
        assert getattr(section, name.lower()) == value


@pytest.mark.parametrize(("whole", "part"), [("16", 8), ("8", 8), ("4", 2), ("20", 2)])
def test_micro_batches_fit_into_the_step_that_a_user_sets(whole: str, part: int) -> None:
    settings = load_settings({"model": "tiny", "global_batch_size": whole})
    assert settings.batch.batch_size == part


def test_a_micro_batch_that_does_not_fit_into_the_models_step_is_refused() -> None:
    with pytest.raises(ConfigError, match="GLOBAL_BATCH_SIZE=8 is not a multiple of BATCH_SIZE=3"):
        load_settings({"model": "tiny", "batch_size": "3"})
