"""The device that DEVICE names."""

import torch

from app.errors import ConfigError


def resolve_device(requested: str) -> torch.device:
    """The device to use. Raises ConfigError if DEVICE names one that does not work here."""
    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() else "cpu"
    if requested == "cuda" and not torch.cuda.is_available():
        build = torch.version.cuda or "none: this torch is the CPU build"
        raise ConfigError(
            "DEVICE=cuda, but no CUDA device works here "
            f"(CUDA of this torch: {build}): give the container a GPU, or set DEVICE=cpu"
        )
    if requested == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("DEVICE=mps, but there is no Apple GPU here: set DEVICE=cpu")
    return torch.device(requested)


def gpus_here() -> int:
    """How many GPUs this process may use; 0 where it computes on a CPU."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def take_gpu(number: int, wanted: int) -> None:
    """From here on "cuda" means that one of `wanted`. Raises ConfigError if there are fewer."""
    if torch.cuda.is_available():
        wanted, there = max(wanted, number + 1), torch.cuda.device_count()
        if wanted > there:
            raise ConfigError(
                f"DEVICES={wanted}, but this process may use {there} of the machine's GPUs: set "
                f"DEVICES=auto, or at most {there}"
            )
        torch.cuda.set_device(number)
