"""Parts of a decoder layer whose backward passes are written by hand.

Autograd keeps every intermediate tensor for its backward pass. Here what is cheap is computed
again: a normalized row, SwiGLU's product. No matrix product is made twice. Each piece also has
its plain operations, which compute the same, operation by operation. They are used where a
backward pass by hand is of no use (`by_hand`), and where `fused` is False.

Shapes: N rows, D hidden size, O outputs, F size between the MLP's two maps, E head size.
Under autocast the matrix products are made in its type.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def by_hand() -> bool:
    """Whether a backward pass by hand is of use: not without gradients, and not to a compiler,
    which decides itself what to keep."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def products_dtype(x: Tensor) -> torch.dtype:
    """The type in which matrix products with x are made: under autocast, autocast's."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """x / rms(x) · scale of x (…, D), in float32 (Zhang & Sennrich, 2019)."""
    x32 = x.float()
    x32 = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + eps)
    return scale * x32.to(x.dtype)


def norm_linear(
    x: Tensor, scale: Tensor, eps: float, *weights: Tensor, fused: bool = True
) -> tuple[Tensor, ...]:
    """`rms_norm` of x (…, D), then a linear map with each of `weights` (O, D)."""
    if not (fused and by_hand()):
        normed = rms_norm(x, scale, eps)
        return tuple(F.linear(normed, weight) for weight in weights)
    outputs: tuple[Tensor, ...] = _NormLinear.apply(x, scale, eps, *weights)
    return outputs


def swiglu_linear(gate: Tensor, up: Tensor, weight: Tensor, *, fused: bool = True) -> Tensor:
    """silu(gate) · up, both (…, F), then a linear map with `weight` (O, F)."""
    if not (fused and by_hand()):
        return F.linear(F.silu(gate) * up, weight)
    output: Tensor = _SwigluLinear.apply(gate, up, weight)
    return output


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, fused: bool = True) -> Tensor:
    """Apply rotary embeddings to x (…, T, E): its halves are the rotated pairs."""
    if not (fused and by_hand()):
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-second, first), dim=-1) * sin
    output: Tensor = _Rotate.apply(x, cos, sin)
    return output


class _NormLinear(torch.autograd.Function):
    """With u = x / rms(x) and g the gradient of scale · u:
    dx = (scale · g − u · mean(scale · g · u)) / rms(x), dscale = Σ g · u."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float, *weights: Tensor) -> Any:
        dtype = products_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = x.flatten(0, -2).float()
            inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(eps))
            normed = torch.mul(wide, inverse).to(x.dtype).mul_(scale).to(dtype)
            outputs = tuple(F.linear(normed, w.to(dtype)).view(*x.shape[:-1], -1) for w in weights)
        ctx.save_for_backward(x, scale, inverse, *weights)
        ctx.dtype = dtype
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, scale, inverse, *weights = ctx.saved_tensors
        wide = x.flatten(0, -2).to(inverse.dtype)
        unit = wide * inverse
        normed = (unit * scale).to(ctx.dtype)
        rows = [grad.flatten(0, -2) for grad in grads]
        of_weights = [(g.T @ normed).to(w.dtype) for g, w in zip(rows, weights, strict=True)]
        of_normed = rows[0] @ weights[0].to(ctx.dtype)
        for g, w in zip(rows[1:], weights[1:], strict=True):
            of_normed.addmm_(g, w.to(ctx.dtype))
        of_normed = of_normed.to(inverse.dtype)
        shared = of_normed * unit
        of_scale = shared.sum(0).to(scale.dtype)
        mean = (shared @ scale.to(shared.dtype))[:, None] / wide.shape[-1]
        of_x = of_normed.mul_(scale).addcmul_(unit, mean, value=-1).mul_(inverse)
        return of_x.to(x.dtype).view_as(x), of_scale, None, *of_weights


class _SwigluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        dtype = products_dtype(gate)
        with torch.autocast(gate.device.type, enabled=False):
            product = F.silu(gate).mul_(up)
            output = F.linear(product.to(dtype), weight.to(dtype))
        ctx.save_for_backward(gate, up, weight)
        ctx.dtype = dtype
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        gate, up, weight = ctx.saved_tensors
        rows = grads[0].flatten(0, -2)
        active = F.silu(gate)
        of_product = (rows @ weight.to(ctx.dtype)).to(gate.dtype).view_as(gate)
        of_up = of_product * active
        of_gate = torch.ops.aten.silu_backward(of_product.mul_(up), gate)
        product = active.mul_(up).flatten(0, -2)
        of_weight = (rows.T @ product.to(ctx.dtype)).to(weight.dtype)
        return of_gate, of_up, of_weight


class _Rotate(torch.autograd.Function):
    """The backward pass is the rotation by the negative angles."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        return _rotated(grads[0], cos, sin, -1), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    out = x * cos
    half = x.shape[-1] // 2
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-direction)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=direction)
    return out
