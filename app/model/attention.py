"""Which of torch's attention kernels is the fastest for these shapes on this device.

No table can say it: cuDNN's is twice as fast as the default on some GPUs, and slower on others.
So the job tries each of them when it starts, for some milliseconds.
"""

import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from app.settings.presets import ModelConfig

KERNELS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
)
_CLEARLY = 1.05  # a smaller ratio is noise, and every start of a run should choose alike
_REPEATS = 5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AttentionShape:
    """One layer's attention over a micro-batch of `batch_size` sequences of `seq_len` tokens."""

    config: ModelConfig
    batch_size: int
    seq_len: int
    dtype: torch.dtype


def preferred(seconds: dict[SDPBackend, float]) -> SDPBackend | None:
    """The first of KERNELS that is not clearly slower than the fastest."""
    fastest = min(seconds.values(), default=0.0)
    return next((kernel for kernel in seconds if seconds[kernel] <= _CLEARLY * fastest), None)


def kernel_seconds(device: torch.device, shape: AttentionShape) -> dict[SDPBackend, float]:
    """Seconds of one layer's attention, forwards and back, by each kernel that can do it."""
    config = shape.config
    query, key, value = (
        torch.randn(
            (shape.batch_size, heads, shape.seq_len, config.head_dim),
            generator=torch.Generator(device).manual_seed(0),
            device=device,
            dtype=shape.dtype,
            requires_grad=True,
        )
        for heads in (config.num_attention_heads, *2 * [config.num_key_value_heads])
    )

    def once() -> float:
        _finish(device)
        began = time.perf_counter()
        out = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        out.backward(out.detach())
        _finish(device)
        return time.perf_counter() - began

    seconds = {}
    for kernel in KERNELS:
        with sdpa_kernel(kernel), warnings.catch_warnings(action="ignore"):
            try:
                once()
            except RuntimeError:  # so torch says: not on this device, or not for these shapes
                continue
            seconds[kernel] = statistics.median(once() for _ in range(_REPEATS))
    return seconds


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def fastest_attention(
    device: torch.device,
    shape: AttentionShape,
    *,
    masked: bool,
    measure: Callable[[torch.device, AttentionShape], dict[SDPBackend, float]] = kernel_seconds,
) -> Iterator[None]:
    """On a GPU, causal attention inside this context is done by the fastest kernel for it.

    Attention with a mask goes to FlexAttention or is torch's own choice, so nothing is tried.
    `measure` gives the seconds that each kernel takes.
    """
    tries = device.type == "cuda" and not masked
    seconds = measure(device, shape) if tries else {}
    chosen = preferred(seconds)
    if chosen is None:
        yield
        return
    measured = ", ".join(f"{kernel.name} {1000 * s:.2f} ms" for kernel, s in seconds.items())
    log.info("attention by %s (a layer and micro-batch: %s)", chosen.name, measured)
    others = [kernel for kernel in (*KERNELS, SDPBackend.MATH) if kernel is not chosen]
    # Torch keeps compiled code across starts under a key, which must name this choice.
    tag = f"attention by {chosen.name}"
    tagged = torch.compiler.config.patch(cache_key_tag=tag)  # type: ignore[attr-defined]
    with sdpa_kernel([chosen, *others], set_priority=True), tagged:
        yield
