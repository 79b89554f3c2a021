"""The errors in what a command printed."""

import pytest


def errors(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if "ERROR" in line]
