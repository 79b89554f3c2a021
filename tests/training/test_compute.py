"""Where the arithmetic runs, and what share of the hardware it uses."""

import dataclasses

import pytest

from app.errors import ConfigError
from app.settings.variables import ComputeSettings
from app.training.compute import _peak_flops, resolve_compute


def test_utilization_is_the_share_of_the_peak_where_there_is_one() -> None:
    cpu = resolve_compute(ComputeSettings.model_validate({"device": "cpu"}))
    assert cpu.utilization(5e12) is None
    assert dataclasses.replace(cpu, peak_flops=10e12).utilization(5e12) == 0.5


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", None),
        ("NVIDIA RTX A1000", None),
    ],
)
def test_a_card_is_known_by_whole_words(name: str, peak: float | None) -> None:
    assert _peak_flops(name) == peak


def test_a_device_that_is_not_here_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"DEVICE=mps, but .* set DEVICE=cpu"):
        resolve_compute(ComputeSettings.model_validate({"device": "mps"}))
