"""The loss that training minimizes.

Shapes: B sequences, T tokens, V vocabulary.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from app.model.document_mask import Mask, block_mask, boolean_mask, document_places
from app.model.linear_loss import linear_cross_entropy
from app.model.smollm2 import SmolLM2

log = logging.getLogger(__name__)


def next_token_loss(logits: Tensor, targets: Tensor, z_loss_weight: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats of logits (B, T, V) against targets (B, T).

    In float32, or in the logits' own type if that is wider. With `z_loss_weight` the gradient
    is that of cross-entropy + weight · z-loss; the value stays the cross-entropy alone, bit
    for bit.
    """
    wide = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.cross_entropy(wide, targets.flatten())
    if z_loss_weight == 0.0 or not torch.is_grad_enabled():
        return loss
    penalty = z_loss_weight * z_loss(wide.logsumexp(dim=-1))
    return loss + (penalty - penalty.detach())


def z_loss(log_z: Tensor) -> Tensor:
    """Mean of log² Z over positions, where log Z is the logsumexp of a position's logits.

    It keeps the normalizer of the softmax near 1 (Chowdhery et al., 2022, PaLM, section 5).
    """
    return log_z.square().mean()


class LossFunction:
    """Mean cross-entropy of the model on token ids (B, T + 1), in one of two ways.

    dense   all logits (B, T, V) are made at once, and compiled together with the rest
    fused   they are made and used part by part, by `app.model.linear_loss`

    With `z_loss_weight` the gradient is that of cross-entropy + weight · z-loss; the value
    stays the cross-entropy alone, so that runs with and without it compare.

    With an `end_token`, documents do not attend to each other. The first token of a document is
    still predicted, from the end token before it: so every sequence has T targets with and
    without the mask, and the model learns to start a text from the end token.

    Where the compiler fails, the log says so in one line and training goes on without it.
    """

    def __init__(
        self,
        model: SmolLM2,
        *,
        compile_model: bool,
        fused: bool = False,
        z_loss_weight: float = 0.0,
        end_token: int | None = None,
    ) -> None:
        self._model, self._fused = model, fused
        self._z_loss_weight, self._end_token = z_loss_weight, end_token
        part: Callable[..., Tensor] = model.model if fused else self._dense
        self._eager = self._compiled = part
        if compile_model:
            self._compiled = torch.compile(part)

    def __call__(self, tokens: Tensor) -> Tensor:
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        if not self._fused:
            return self._run(inputs, targets)
        return linear_cross_entropy(
            self._run(inputs).flatten(0, 1),
            self._model.model.embed_tokens.weight,
            targets.flatten(),
            self._z_loss_weight,
        )

    def _dense(
        self,
        inputs: Tensor,
        targets: Tensor,
        positions: Tensor | None = None,
        mask: Mask | None = None,
    ) -> Tensor:
        return next_token_loss(self._model(inputs, positions, mask), targets, self._z_loss_weight)

    def _run(self, inputs: Tensor, *targets: Tensor) -> Tensor:
        if self._compiled is not self._eager:
            from torch._dynamo.exc import TorchDynamoException
            from torch._inductor.exc import InductorError

            try:
                return self._compiled(
                    inputs, *targets, *self._packing(inputs, blocks=inputs.is_cuda)
                )
            except (TorchDynamoException, InductorError) as error:
                reason = str(error).strip().splitlines()[0]
                log.warning("torch.compile failed, going on without it: %s", reason)
                self._compiled = self._eager
        return self._eager(inputs, *targets, *self._packing(inputs, blocks=False))

    def _packing(self, inputs: Tensor, *, blocks: bool) -> tuple[()] | tuple[Tensor, Mask]:
        """Positions and mask; nothing where documents may attend to each other."""
        if self._end_token is None:
            return ()
        documents, positions = document_places(inputs, self._end_token)
        mask = block_mask(documents, compiled=True) if blocks else boolean_mask(documents)
        return positions, mask
