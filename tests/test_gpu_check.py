"""`scripts/gpu-check` where there is no GPU: its own code runs, and it says what was not tried."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scripts.gpu_check import Checks, Failed, NotTried, checked, this_machine
from tests.support.repository import ROOT

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@no_gpu
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_without_a_gpu_all_that_needs_none_passes_and_the_rest_is_said_to_be_not_tried(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        ["scripts/gpu-check", "--steps", "2", "--json", str(tmp_path / "found.json")],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "found.json").read_text("utf-8"))
    outcomes = {check["name"]: check["outcome"] for check in report["checks"]}
    passed = {name for name, outcome in outcomes.items() if outcome == "passed"}
    assert passed == {
        "one step of tiny",
        "plain loop",
        "Lightning",
        "Muon",
        "kill and resume",
        "several processes",
    }
    for name in ("GPU tests", "one step of smollm2-135m", "compiled", "FlexAttention"):
        assert outcomes[name] == "not tried"
        assert f"not tried  {name}" in done.stdout
    assert "6 passed, 0 failed, 6 not tried" in done.stdout
    assert report["machine"]["packages"]["torch"] == torch.__version__
    assert report["machine"]["gpus"] == []


def checks(tmp_path: Path) -> Checks:
    return Checks(this_machine(), tmp_path, steps=1)


def test_a_run_that_fails_is_a_check_that_failed_with_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"exit 78:(.|\n)*SEQ_LEN"):
        checks(tmp_path).trained("bad", SEQ_LEN="100000", DEVICE="cpu", MODEL="tiny")


def test_what_is_left_when_the_time_is_over_is_not_tried(tmp_path: Path) -> None:
    late = checks(tmp_path)
    late.until = 0
    found = checked(late, "plain loop")
    assert [(result.outcome, result.why) for result in found] == [
        ("not tried", "the time was over")
    ]


def test_a_model_that_does_not_fit_into_the_card_is_not_tried(tmp_path: Path) -> None:
    small = replace(this_machine(), gpus=["small"], memory=8 * 10**9)
    with pytest.raises(NotTried, match="needs 27 GB of GPU memory"):
        Checks(small, tmp_path, steps=1).one_step("smollm2-1.7b")
