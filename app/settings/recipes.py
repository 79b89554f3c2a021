"""The defaults that a model brings: laid under what the user has set, and over the general ones.

MODEL=auto is one of two models, and only a look at the device tells which. So `load` does this for
a model that is named, and whoever has looked at the device does it for the others.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from app.settings.combined import Settings, Source
from app.settings.presets import RECIPES
from app.settings.variables import variables


def with_recipe(settings: Settings, model: str) -> Settings:
    """`settings` with the defaults of `model`; the source of each is then `preset`."""
    recipe = RECIPES.get(model, {})
    changed: dict[str, Any] = {}
    sources: dict[str, Source] = {}
    for variable in variables():
        name, field = variable.name, variable.name.lower()
        section = changed.get(variable.section, getattr(settings, variable.section))
        if name not in recipe or field in section.model_fields_set:
            continue
        if name == "BATCH_SIZE" and not _divides(recipe, settings):
            continue
        changed[variable.section] = section.model_copy(update={field: recipe[name]})
        sources[name] = "preset"
    return replace(settings, **changed, sources={**settings.sources, **sources})


def with_fitting_batch(settings: Settings) -> Settings:
    """`settings` with a BATCH_SIZE, where the user set none, that leaves no process without samples
    of a step."""
    batch = settings.batch
    most = max(1, math.ceil(batch.global_batch_size / settings.place.world_size))
    if not settings.is_default("BATCH_SIZE") or batch.batch_size <= most:
        return settings
    return replace(settings, batch=batch.model_copy(update={"batch_size": most}))


def _divides(recipe: Mapping[str, Any], settings: Settings) -> bool:
    """Whether a GLOBAL_BATCH_SIZE that was set can be cut into the recipe's micro-batches."""
    if "global_batch_size" not in settings.batch.model_fields_set:
        return True
    return bool(settings.batch.global_batch_size % recipe["BATCH_SIZE"] == 0)
