"""Fifty SIGKILLs per store, biased to the commit, and not one bit of difference."""

import json
import subprocess
import sys

import pytest

from tests.job import ROOT

SEED = 20_261_124


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("store", ["local", "s3"])
def test_fifty_kills_anywhere_cost_not_one_bit(store: str, job_environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "tests.kill_anywhere", "--store", store, "--kills", "50"]
    command += ["--seed", str(SEED), "--job", json.dumps(job_environment)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(result.stdout)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert "50 kills" in result.stdout
