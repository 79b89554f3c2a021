"""Whether all processes have the same weights and moments, bit for bit: one of them may compute
wrongly."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from app.errors import LostPeer, Unavailable
from app.ranks.team import Team

_BITS = 0x7FFF_FFFF_FFFF_FFFF  # the sign is needed to compare


class DifferentWeights(Unavailable):
    """The weights or moments of the processes differ: a card, its memory or a link errs."""


def check_same_weights(team: Team, state: Mapping[str, Tensor], step: int) -> None:
    """Raises DifferentWeights, with the ranks and the first of `state`, on each process.

    `state` has the weights and what the optimizer keeps, by name, all float32 and in the same order
    everywhere. Moments count too: wrong ones are wrong weights one step later.
    """
    if not team.is_many:
        return
    sums = _checksums(list(state.values()))
    mixed = 0
    for number in sums.tolist():
        mixed = (mixed * 0x5DEECE66D + number) & _BITS
    if team.all_have(mixed):
        return
    try:
        rows = team.gather(sums)  # (ranks, parameters)
    except LostPeer as lost:  # the weights differ all the same: nobody may commit them
        raise DifferentWeights(
            f"after step {step} the processes have different weights, and one is gone before it "
            "was found which. Nothing of it was saved; a start goes on from the newest checkpoint"
        ) from lost
    differ = ((name, column) for name, column in zip(state, rows.T.tolist(), strict=True))
    name, column = next((n, c) for n, c in differ if len(set(c)) > 1)
    raise DifferentWeights(
        f"after step {step} {name} of rank {_other_ranks(column)} is not that of the other "
        "processes: a device, its memory or a link computes wrongly. Nothing of it was saved; "
        "leave that device out if it comes again, a start goes on from the newest checkpoint"
    )


def _other_ranks(column: list[int]) -> str:
    """Those without the number that most have; all of them where none has most."""
    most = max(set(column), key=column.count)
    clear = 2 * column.count(most) > len(column)
    ranks = [rank for rank, number in enumerate(column) if not clear or number != most]
    return " and ".join(map(str, ranks))


def _checksums(tensors: Sequence[Tensor]) -> Tensor:
    """Of each, on the host. Those of a card come in one copy, since a copy waits for the card."""
    sums = torch.empty(len(tensors), dtype=torch.int64)
    for device in {tensor.device for tensor in tensors}:
        places = [place for place, tensor in enumerate(tensors) if tensor.device == device]
        sums[places] = torch.stack([_checksum(tensors[place]) for place in places]).cpu()
    return sums


def _checksum(tensor: Tensor) -> Tensor:
    """The sum of the bits of a float32 tensor, read as integers, with overflow: int64."""
    return tensor.detach().reshape(-1).view(torch.int32).sum(dtype=torch.int64)
