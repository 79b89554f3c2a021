"""Where the arithmetic runs, and what share of the hardware it uses."""

from dataclasses import replace

import pytest

from app.errors import ConfigError
from app.settings.load import load_settings
from app.settings.place import Place
from app.settings.variables import ComputeSettings
from app.training.compute import _peak_flops, resolve_compute, take_device


def test_utilization_is_the_share_of_the_peak_where_there_is_one() -> None:
    cpu = resolve_compute(ComputeSettings.model_validate({"device": "cpu"}))
    assert cpu.utilization(5e12) is None
    assert replace(cpu, peak_flops=10e12).utilization(5e12) == 0.5


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


@pytest.mark.parametrize(("devices", "rank", "wanted"), [("4", 0, 4), ("auto", 2, 3)])
def test_more_processes_than_gpus_are_refused_by_the_first_of_them(
    devices: str, rank: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    settings = replace(load_settings({"devices": devices}), place=Place(rank, rank, 4))
    with pytest.raises(ConfigError, match=f"DEVICES={wanted}, .* may use 2 of .* at most 2"):
        take_device(settings)
