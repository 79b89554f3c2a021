"""Kills and pauses at every kind of write, on three stores, and not one bit of difference.

`python -m tests.drills.kill_anywhere` is the same for hours.
"""

import re
import subprocess
import sys

import pytest

from tests.support.failpoints import KINDS, ZOMBIES
from tests.support.job import ROOT

SEED = 20_261_124
KILLS = {"local": 50, "s3": 50, "seaweedfs": 20}  # two rounds of all kinds at least
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.parametrize("store", ["local", "s3", "seaweedfs"]),
]


def drill(store: str, *words: str) -> str:
    """What `tests.drills.kill_anywhere` prints; it has to find nothing wrong."""
    command = [sys.executable, "-m", "tests.drills.kill_anywhere", "--store", store, *words]
    command += ["--seed", str(SEED)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(result.stdout)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout


def test_kills_anywhere_cost_not_one_bit(store: str) -> None:
    *_, kinds, total = drill(store, "--kills", str(KILLS[store])).splitlines()
    compared = re.fullmatch(r"\d+ kills, (\d+) finished runs equal the reference", total)
    assert compared is not None and int(compared[1]) > 0, total
    assert set(re.findall(r"\d+ (\w+)", kinds)) == set(KINDS), "some write was never hit"


def test_a_zombie_that_wakes_up_after_its_successor_changes_nothing(store: str) -> None:
    printed = drill(store, "--zombies")
    assert printed.count("exit 79, successor 0, differs 0") == len(ZOMBIES)
