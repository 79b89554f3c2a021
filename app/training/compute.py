"""Where and how the arithmetic runs: device, precision, compilation."""

import platform
import re
from dataclasses import dataclass
from typing import Literal

import torch

from app.errors import ConfigError
from app.model.device import resolve_device, take_gpu
from app.settings.combined import Settings
from app.settings.presets import AUTO_MODELS, PRESETS, ModelConfig
from app.settings.variables import ComputeSettings

# Dense bf16 peaks in FLOP/s, from NVIDIA's datasheets (without sparsity).
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "T4": 65e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}

SMALL_CARD = 32 * 2**30  # bytes of GPU memory


@dataclass(frozen=True)
class Compute:
    """DEVICE, PRECISION, COMPILE, FUSED_LOSS and NUM_WORKERS with every `auto` decided."""

    device: torch.device
    precision: Literal["32-true", "bf16-mixed"]
    compile: bool
    fused_loss: bool
    num_workers: int
    device_name: str
    peak_flops: float | None

    def utilization(self, flops_per_second: float) -> float | None:
        """MFU: the share of the datasheet's peak that is used; None if that is unknown."""
        return flops_per_second / self.peak_flops if self.peak_flops else None

    @property
    def dtype(self) -> torch.dtype:
        """The type of the activations."""
        return torch.bfloat16 if self.precision == "bf16-mixed" else torch.float32

    def autocast(self) -> torch.autocast:
        """The context in which losses are computed."""
        mixed = self.precision == "bf16-mixed"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=mixed)


def resolve_compute(settings: ComputeSettings) -> Compute:
    """Decide every `auto`. Raises ConfigError for what the device cannot do."""
    device = resolve_device(settings.device)
    cuda = device.type == "cuda"
    bf16 = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    fast_bf16 = bf16 if cuda else device.type == "cpu" and _cpu_multiplies_bf16()
    automatic: Literal["32-true", "bf16-mixed"] = "bf16-mixed" if fast_bf16 else "32-true"
    precision = automatic if settings.precision == "auto" else settings.precision
    if precision == "bf16-mixed" and cuda and not bf16:
        raise ConfigError(
            "PRECISION=bf16-mixed, but this GPU has no bfloat16: set PRECISION=32-true"
        )
    name = torch.cuda.get_device_name(device) if cuda else platform.machine()
    workers = settings.num_workers
    return Compute(
        device=device,
        precision=precision,
        compile=settings.compile == "true" or (settings.compile == "auto" and cuda),
        fused_loss=_fuses_loss(device)
        if settings.fused_loss == "auto"
        else settings.fused_loss == "true",
        num_workers=(2 if cuda else 0) if workers is None else workers,
        device_name=name if cuda else f"CPU {name}, {torch.get_num_threads()} threads",
        peak_flops=_peak_flops(name) if cuda and precision == "bf16-mixed" else None,
    )


def take_device(settings: Settings) -> None:
    """Compute on the GPU of this process, where several share the machine.

    Raises ConfigError if there is none for it.
    """
    if not settings.place.is_alone and settings.compute.device in ("auto", "cuda"):
        devices = settings.processes.devices
        # The first process says what is wrong, before another one is started.
        take_gpu(settings.place.local_rank, 0 if devices == "auto" else int(devices))


def resolve_model(requested: str, device: torch.device) -> tuple[str, ModelConfig]:
    """The preset's name and shape; `auto` is 135m on a GPU, tiny elsewhere."""
    if requested == "auto":
        with_gpu, without = AUTO_MODELS
        requested = without if device.type == "cpu" else with_gpu
    return requested, PRESETS[requested]


def model_of(settings: Settings) -> tuple[str, ModelConfig]:
    """The preset's name and shape. Raises ConfigError for a DEVICE that is not here."""
    return resolve_model(settings.model.model, resolve_device(settings.compute.device))


def _cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16: without, it is slower than float32."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("amx_bf16") or has.get("avx512_bf16"))


def _fuses_loss(device: torch.device) -> bool:
    """Whether `auto` saves memory by fusing: on a CPU, and on a GPU that dense logits half fill."""
    if device.type != "cuda":
        return True
    return torch.cuda.get_device_properties(device).total_memory < SMALL_CARD


def _peak_flops(name: str) -> float | None:
    """The peak of the card of this name, compared by whole words: an L40 is not an L4."""
    matches = (peak for known, peak in PEAK_FLOPS.items() if re.search(rf"\b{known}\b", name))
    return next(matches, None)
