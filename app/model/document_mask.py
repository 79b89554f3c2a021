"""Documents packed into one sequence: where each lies, and which tokens may attend to which.

Shapes: B sequences, T tokens.

A document ends with its end-of-text token, which belongs to it. A sequence may begin in the
middle of a document; that rest counts as a document of its own.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

Mask = Tensor | BlockMask


def document_places(input_ids: Tensor, end_token: int) -> tuple[Tensor, Tensor]:
    """For token ids (B, T): the number of each token's document, and its position in it.

    Both are (B, T) of int64 and count from 0 in every sequence.
    """
    starts = torch.zeros_like(input_ids, dtype=torch.bool)
    starts[:, 1:] = input_ids[:, :-1] == end_token
    index = torch.arange(input_ids.shape[1], device=input_ids.device)
    positions = index - torch.where(starts, index, 0).cummax(-1).values
    return starts.cumsum(-1), positions


def boolean_mask(documents: Tensor) -> Tensor:
    """(B, 1, T, T), true where query token t may attend to key token u: u ≤ t, same document."""
    length = documents.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    return (causal & (documents[:, :, None] == documents[:, None, :]))[:, None]


def block_mask(documents: Tensor, *, compiled: bool) -> BlockMask:
    """The same as `boolean_mask`, for FlexAttention (Dong et al. 2024), which skips empty blocks.

    `compiled` makes it without a (B, T, T) table in memory.
    """
    batch, length = documents.shape
    create = torch.compile(create_block_mask) if compiled else create_block_mask
    return create(
        partial(_visible, documents), batch, None, length, length, device=documents.device
    )


def _visible(documents: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return (query >= key) & (documents[batch, query] == documents[batch, key])
