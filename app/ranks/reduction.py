"""The sum of all processes' gradients: one function, for both trainers."""

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from app.ranks.team import Team

BUCKET_NUMBERS = 8 * 2**20  # 32 MiB of float32: long enough for a network, short beside a model


@torch.no_grad()
def reduce_gradients(
    parameters: Iterable[Tensor],
    loss: Tensor,
    team: Team,
    share: float,
    bucket_numbers: int = BUCKET_NUMBERS,
) -> None:
    """Replace each gradient, and `loss`, by `share` times its sum over all processes, in float32.

    One bucket of `bucket_numbers` is under way while the next one is made. Each process gets the
    same bits. Raises LostPeer; the gradients are of no use then.
    """
    if not team.is_many:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    under_way = None
    for bucket in _buckets([*gradients, loss], bucket_numbers):
        flat = torch.cat([tensor.reshape(-1).float() for tensor in bucket])
        begun = team.begin_sum(flat), flat, bucket
        if under_way is not None:
            _finish(team, share, *under_way)
        under_way = begun
    if under_way is not None:
        _finish(team, share, *under_way)


def _finish(
    team: Team, share: float, work: "dist.Work", flat: Tensor, bucket: Sequence[Tensor]
) -> None:
    team.end_sum(work, flat)
    flat.mul_(share)
    parts = flat.split([tensor.numel() for tensor in bucket])
    for tensor, part in zip(bucket, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def _buckets(tensors: Sequence[Tensor], numbers: int) -> Iterator[list[Tensor]]:
    """`tensors` in their order, so many at a time that they have `numbers` numbers, or one."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > numbers:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
