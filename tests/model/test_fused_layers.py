"""Values and gradients of the pieces written by hand are those of autograd's own."""

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from app.model import fused_layers
from app.model.fused_layers import norm_linear, rotate, swiglu_linear
from app.model.smollm2 import RMSNorm, SmolLM2, rope_tables
from app.settings.presets import PRESETS

EPS = 1e-5


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    draw = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    return [tensor.requires_grad_() for tensor in draw]


def assert_same(
    by_hand: Callable[..., tuple[Tensor, ...]],
    plain: Callable[..., tuple[Tensor, ...]],
    inputs: list[Tensor],
    tolerance: float,
) -> None:
    """Outputs, and the gradients of a weighted sum of them, relative to the largest."""
    results = []
    for function in (by_hand, plain):
        outputs = function(*inputs)
        loss = sum((output.double() ** 2).sum() * n for n, output in enumerate(outputs, start=1))
        assert isinstance(loss, Tensor)
        results.append([*outputs, *torch.autograd.grad(loss, inputs)])
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def plain_norm_linear(x: Tensor, scale: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    norm = RMSNorm(len(scale), EPS)
    del norm.weight
    norm.weight = scale  # type: ignore[assignment]
    return tuple(F.linear(norm(x), weight) for weight in weights)


@pytest.mark.parametrize("outputs", [(5,), (12, 4, 4)])
def test_a_norm_and_its_linear_maps(
    outputs: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The norm is computed in float32, as Llama's is: too coarse to compare formulas.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    inputs = drawn((2, 7, 12), (12,), *((n, 12) for n in outputs))
    assert_same(lambda x, s, *w: norm_linear(x, s, EPS, *w), plain_norm_linear, inputs, 1e-14)


def test_swiglu_and_its_linear_map() -> None:
    def plain(gate: Tensor, up: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return (F.linear(F.silu(gate) * up, weight),)

    inputs = drawn((2, 7, 12), (2, 7, 12), (5, 12))
    assert_same(lambda *args: (swiglu_linear(*args),), plain, inputs, 1e-14)


@pytest.mark.parametrize("packed", [False, True])
def test_a_rotation(packed: bool) -> None:
    cos, sin = rope_tables(torch.arange(7), 8, 1e4, torch.float64)
    if packed:  # documents of a batch restart at places of their own
        places = torch.tensor([[0, 1, 2, 0, 1, 2, 3], [0, 0, 1, 2, 3, 4, 0]])
        cos, sin = cos[places][:, None], sin[places][:, None]

    def plain(x: Tensor) -> tuple[Tensor, ...]:
        return (rotate(x, cos, sin, fused=False),)

    assert_same(lambda x: (rotate(x, cos, sin),), plain, drawn((2, 3, 7, 8)), 1e-14)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_whole_model_has_the_gradients_of_plain_operations(autocast: bool) -> None:
    tokens = torch.randint(0, 4_096, (2, 32), generator=torch.Generator().manual_seed(1))

    def gradients(model: SmolLM2) -> dict[str, Tensor]:
        model.initialize(seed=3)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            logits = model(tokens)
        F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten()).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model = SmolLM2(PRESETS["tiny"])
    ours = gradients(model)
    theirs = gradients(SmolLM2(PRESETS["tiny"], fused_layers=False))
    assert ours.keys() == theirs.keys() == dict(model.named_parameters()).keys()
    for name, gradient in theirs.items():
        difference = (ours[name] - gradient).norm() / gradient.norm()
        assert difference < (0.02 if autocast else 1e-5), name


def test_little_more_than_half_is_kept_for_the_backward_pass() -> None:
    tokens = torch.zeros((2, 128), dtype=torch.long)

    def kept(model: SmolLM2) -> int:
        weights = {p.data_ptr() for p in model.parameters()}
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if tensor.data_ptr() not in weights:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden = model.model(tokens)
        assert hidden.requires_grad
        return sum(sizes.values())

    by_hand = kept(SmolLM2(PRESETS["tiny"]))
    assert by_hand < 0.6 * kept(SmolLM2(PRESETS["tiny"], fused_layers=False))


def test_they_are_left_to_the_compiler_and_not_used_without_gradients() -> None:
    assert fused_layers.by_hand()
    with torch.no_grad():
        assert not fused_layers.by_hand()
    with mock.patch("torch.compiler.is_compiling", return_value=True):
        assert not fused_layers.by_hand()
