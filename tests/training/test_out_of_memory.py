"""Out of memory, as each device says it."""

import gc
import weakref

import pytest
import torch

from app.errors import ConfigError
from app.settings.load import load_settings
from app.training.out_of_memory import memory_failures

CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of "
    "which 5.12 MiB is free. Process 7 has 79.10 GiB memory in use. Of the allocated memory 70.50 "
    "GiB is allocated by PyTorch, and 1.00 GiB is reserved by PyTorch but unallocated."
)
MPS = (
    "MPS backend out of memory (MPS allocated: 17.00 GB, other allocations: 1 GB, max allowed: "
    "18.13 GB). Tried to allocate 256.00 MB on private pool."
)
CPU = (
    "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried "
    "to allocate 64000000000 bytes. Error code 12 (Cannot allocate memory)"
)

pytestmark = pytest.mark.usefixtures("nothing_set")


@pytest.mark.parametrize(
    ("error", "facts"),
    [
        (
            torch.OutOfMemoryError(CUDA),
            "(2.00 GiB asked for, 70.50 GiB held, 5.12 MiB free of 79.11 GiB)",
        ),
        (RuntimeError(MPS), "(256.00 MB asked for, 17.00 GB held)"),
        (RuntimeError(CPU), "64000000000 bytes"),
        (RuntimeError("CUDA error: out of memory"), "(CUDA error: out of memory)"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling"), "CUBLAS_STATUS_ALLOC_FAILED"),
        (MemoryError(), "(MemoryError)"),
    ],
)
def test_it_says_what_was_asked_and_held_and_names_the_batch_size(
    error: Exception, facts: str
) -> None:
    with pytest.raises(ConfigError) as caught, memory_failures(load_settings({"batch_size": "8"})):
        raise error
    assert facts in str(caught.value)
    assert "set a smaller BATCH_SIZE (now 8" in str(caught.value)


def test_with_nothing_left_to_set_it_says_so() -> None:
    flags = {"batch_size": "1", "gradient_checkpointing": "true", "fused_loss": "true"}
    with pytest.raises(ConfigError, match="a smaller MODEL"), memory_failures(load_settings(flags)):
        raise MemoryError


def test_another_failure_passes_as_it_is() -> None:
    with (
        pytest.raises(RuntimeError, match="shapes do not match"),
        memory_failures(load_settings({})),
    ):
        raise RuntimeError("shapes do not match")


def test_what_the_failed_work_held_is_given_up() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def work() -> None:
        activations = torch.zeros(8)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError(CUDA)

    with pytest.raises(ConfigError) as caught, memory_failures(load_settings({})):
        work()
    gc.collect()
    assert caught.value.__cause__ is not None and held[0]() is None
