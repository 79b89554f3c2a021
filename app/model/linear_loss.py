"""Output layer and cross-entropy in one: the logits are never all there at once.

Shapes: N predictions, D hidden size, V vocabulary. With V = 49,152 the logits of 2,048
predictions take 403 MB in float32, and dense cross-entropy holds them several times. Here
they are made for some rows at a time. Their gradient, softmax(logits) − onehot(targets),
is known as soon as they are, so the products of the backward pass follow at once, and
nothing is computed twice.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from app.model.fused_layers import products_dtype


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    z_loss_weight: float = 0.0,
    *,
    most_logits: int = 1 << 24,
) -> Tensor:
    """Mean cross-entropy in nats of hidden (N, D) @ weight (V, D)ᵀ against targets (N,).

    The same as `next_token_loss(linear(hidden, weight), targets, z_loss_weight)`, up to
    rounding. Under autocast the products are made in its type, everything between in float32.
    At most `most_logits` are held at a time; the default is 64 MiB in float32.
    """
    if not torch.is_grad_enabled():  # the function below looks at its inputs alone
        hidden, weight = hidden.detach(), weight.detach()
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, z_loss_weight, most_logits)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        z_loss_weight: float,
        most_logits: int,
    ) -> Tensor:
        n, vocabulary = hidden.shape[0], weight.shape[0]
        of_hidden, of_weight, *_ = ctx.needs_input_grad
        dtype = products_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            inputs, matrix = hidden.to(dtype), weight.to(dtype)
            grad_hidden = torch.empty_like(inputs) if of_hidden else None
            grad_weight = torch.zeros_like(weight) if of_weight else None
            wide = torch.promote_types(dtype, torch.float32)
            total = inputs.new_zeros((), dtype=wide)
            rows = min(n, max(1, most_logits // vocabulary))
            # Every part uses this memory again: to allocate it costs as much as to fill it.
            logits = inputs.new_empty((rows, vocabulary))
            buffers = logits, logits if dtype == wide else torch.empty_like(logits, dtype=wide)
            for start in range(0, n, rows):
                part = slice(start, start + rows)
                total += _add_part(
                    inputs[part],
                    matrix,
                    targets[part],
                    None if grad_hidden is None else grad_hidden[part],
                    grad_weight,
                    buffers,
                    z_loss_weight,
                )
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.hidden_dtype, ctx.n = hidden.dtype, n
        return total / n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad_outputs[0] / ctx.n
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden.to(ctx.hidden_dtype) * scale
        if grad_weight is not None:
            grad_weight = grad_weight * scale
        return grad_hidden, grad_weight, None, None, None


def _add_part(
    inputs: Tensor,
    matrix: Tensor,
    targets: Tensor,
    grad_inputs: Tensor | None,
    grad_weight: Tensor | None,
    buffers: Sequence[Tensor],
    z_loss_weight: float,
) -> Tensor:
    """The summed loss of some rows; its gradients are written to `grad_inputs` and added to
    `grad_weight`. The first of `buffers` is for logits in the products' type, the second for
    log-probabilities in the loss's. Where the types are the same, so is the tensor: a row is
    read before it is written."""
    logits, log_p = (buffer[: len(targets)] for buffer in buffers)
    torch.matmul(inputs, matrix.T, out=logits)
    rows = torch.arange(len(targets), device=targets.device)
    of_targets = logits[rows, targets].to(log_p.dtype)
    torch.log_softmax(logits, -1, dtype=log_p.dtype, out=log_p)
    log_likelihood = log_p[rows, targets]
    if grad_inputs is None and grad_weight is None:
        return -log_likelihood.sum()
    grad_logits = log_p.exp_()
    if z_loss_weight:  # d log²Z / d logits = 2 log Z · softmax
        log_z = of_targets - log_likelihood
        grad_logits *= 1 + 2 * z_loss_weight * log_z[:, None]
    grad_logits[rows, targets] -= 1
    grad_logits = grad_logits.to(inputs.dtype)
    if grad_inputs is not None:
        torch.mm(grad_logits, matrix, out=grad_inputs)
    if grad_weight is not None:
        if grad_weight.dtype == inputs.dtype:
            grad_weight.addmm_(grad_logits.T, inputs)
        else:
            grad_weight += grad_logits.T @ inputs
    return -log_likelihood.sum()
