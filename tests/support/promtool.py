"""Prometheus's own tool. It is in Debian's package `prometheus`, and in the image of the tests."""

import shutil
import subprocess
import warnings
from pathlib import Path

import pytest


def found_promtool() -> str:
    """Its place. The test is skipped where there is none, and that is said aloud."""
    found = shutil.which("promtool")
    if found is None:
        lost = "NOT TRIED: promtool is missing (Debian's package `prometheus` has it)"
        warnings.warn(lost, stacklevel=2)
        pytest.skip(lost)
    return found


def asked_of(promtool: str, folder: Path, *words: str, given: str = "") -> str:
    """What it says; it has to find nothing wrong."""
    done = subprocess.run(
        [promtool, *words],
        cwd=folder,
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
