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
