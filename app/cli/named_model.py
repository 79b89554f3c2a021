"""The model that the settings name, for commands that train nothing."""

from app.settings.combined import Settings
from app.settings.presets import AUTO_MODELS


def model_here(settings: Settings) -> str:
    """MODEL; where it is `auto`, the one that is meant on this machine.

    Looks at the device only where DEVICE does not say it.
    """
    if settings.model.model != "auto":
        return settings.model.model
    if (device := settings.compute.device) != "auto":
        return AUTO_MODELS[device == "cpu"]
    from app.training.compute import model_of

    return model_of(settings)[0]
