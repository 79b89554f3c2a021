"""Out of memory, in whatever words a device says it, as an error that says what to set."""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from app.errors import ConfigError
from app.failures import first_line
from app.settings.combined import Settings

# What is no OutOfMemoryError: of the CPU, of Apple's GPUs, and of CUDA's own libraries.
_SAID = re.compile(
    r"can't allocate memory|backend out of memory|CUDA error: out of memory|_ALLOC_FAILED"
)
_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+ \w+)")
_CAPACITY = re.compile(r"total capacity of ([\d.]+ \w+)")
_FREE = re.compile(r"of which ([\d.]+ \w+) is free")
_HELD = re.compile(r"([\d.]+ \w+) is allocated by PyTorch|MPS allocated: ([\d.]+ \w+)")


@contextmanager
def memory_failures(settings: Settings) -> Iterator[None]:
    """For work on the device. Raises ConfigError if it runs out of memory.

    What the failed work held is given up then, so that there is room to save what was made before.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _ran_out(error):
            raise
        text = _in_words(error, settings)
        _let_go(error)
        raise ConfigError(text) from error


def _ran_out(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return _SAID.search(str(error)) is not None


def _in_words(error: BaseException, settings: Settings) -> str:
    said, batch = str(error), settings.batch.batch_size
    asked, held, capacity, free = (
        next(filter(None, found.groups()), None) if (found := pattern.search(said)) else None
        for pattern in (_ASKED, _HELD, _CAPACITY, _FREE)
    )
    facts = [f"{asked} asked for" if asked else first_line(error)]
    facts += [f"{held} held"] if held else []
    facts += [f"{free or 'nothing'} free of {capacity}"] if capacity else []
    ways = [f"set a smaller BATCH_SIZE (now {batch}; the steps stay the same)"] if batch > 1 else []
    if not settings.compute.gradient_checkpointing:
        ways.append("GRADIENT_CHECKPOINTING=true")
    if settings.compute.fused_loss != "true":
        ways.append("FUSED_LOSS=true")
    if not ways:
        ways = ["BATCH_SIZE is 1 already: use a device with more memory, or a smaller MODEL"]
    return f"out of memory ({', '.join(facts)}): {', or '.join(ways)}"


def _let_go(error: BaseException) -> None:
    """Forget the activations: the frames that the failure went through still hold them."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
