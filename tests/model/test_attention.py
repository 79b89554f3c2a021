"""The choice among torch's attention kernels, as far as a CPU shows it."""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

from app.model.attention import AttentionShape, fastest_attention, kernel_seconds, preferred
from app.settings.presets import PRESETS

FLASH, EFFICIENT = SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION
CUDNN = SDPBackend.CUDNN_ATTENTION
SHAPE = AttentionShape(PRESETS["tiny"], batch_size=2, seq_len=32, dtype=torch.float32)
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_that_this_device_has_not_are_left_out(dtype: torch.dtype) -> None:
    seconds = kernel_seconds(CPU, dataclasses.replace(SHAPE, dtype=dtype))
    assert list(seconds) == [FLASH]
    assert seconds[FLASH] > 0


def test_the_random_numbers_of_the_training_are_not_touched() -> None:
    before = torch.get_rng_state()
    kernel_seconds(CPU, SHAPE)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("seconds", "choice"),
    [
        ({FLASH: 1.0, EFFICIENT: 2.0, CUDNN: 0.5}, CUDNN),
        ({FLASH: 1.0, EFFICIENT: 2.0, CUDNN: 0.97}, FLASH),
        ({EFFICIENT: 2.0}, EFFICIENT),
        ({}, None),
    ],
)
def test_the_fastest_is_chosen_and_a_draw_goes_to_the_first(
    seconds: dict[SDPBackend, float], choice: SDPBackend | None
) -> None:
    assert preferred(seconds) is choice


def test_the_chosen_one_comes_first_and_the_others_stay_for_what_it_cannot_do() -> None:
    usual = torch._C._get_sdp_priority_order()
    seconds = {FLASH: 2.0, CUDNN: 1.0}
    with fastest_attention(GPU, SHAPE, masked=False, measure=lambda *_: seconds):
        order = torch._C._get_sdp_priority_order()
        assert order[:4] == [kernel.value for kernel in (CUDNN, FLASH, EFFICIENT)] + [
            SDPBackend.MATH.value
        ]
        assert torch.compiler.config.cache_key_tag == "attention by CUDNN_ATTENTION"
        heads = torch.ones(1, 1, 4, 8)
        assert torch.equal(scaled_dot_product_attention(heads, heads, heads), heads)
    assert torch._C._get_sdp_priority_order() == usual
    assert torch.compiler.config.cache_key_tag == ""


def test_a_cpu_and_masked_attention_are_left_as_they_are() -> None:
    usual = torch._C._get_sdp_priority_order()
    for device, masked in [(CPU, False), (GPU, True)]:
        with fastest_attention(
            device, SHAPE, masked=masked, measure=lambda *_: pytest.fail("measured")
        ):
            assert torch._C._get_sdp_priority_order() == usual
