"""What is said of settings that are refused."""

import pytest

from app.errors import ConfigError
from app.settings.load import load_settings


def problems(**flags: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(flags)
    assert caught.value.exit_code == 78
    return str(caught.value)
