"""The sum of the gradients of several processes, compared with the whole batch in one."""

import dataclasses

import pytest
import torch
from torch import Tensor

from app.data.sample_order import BatchGeometry
from app.model.loss import LossFunction
from app.model.smollm2 import SmolLM2
from app.ranks.reduction import reduce_gradients
from app.ranks.team import Team
from app.settings.place import Place
from app.settings.presets import PRESETS
from tests.support.team import in_team

SEQ_LEN = 16
SAMPLES = 8
CONFIG = dataclasses.replace(
    PRESETS["tiny"],
    vocab_size=256,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
)


def batch() -> Tensor:
    """(SAMPLES, SEQ_LEN + 1) token ids."""
    return torch.randint(0, 256, (SAMPLES, SEQ_LEN + 1), generator=torch.Generator().manual_seed(3))


def gradients(team: Team, batch_size: int, bucket_numbers: int) -> dict[str, bytes]:
    """One step without an update: the bytes of each gradient, and of the loss."""
    model = SmolLM2(CONFIG)
    model.initialize(5)
    loss_function = LossFunction(model, compile_model=False)
    geometry = BatchGeometry(batch_size, SAMPLES, SEQ_LEN, team.size, team.rank)
    step_loss = torch.zeros(())
    for micro_step in range(geometry.accumulation):
        loss = loss_function(batch()[list(geometry.samples(0, micro_step))])
        loss = loss * geometry.counts(micro_step) / geometry.accumulation
        loss.backward()
        step_loss += loss.detach()
    reduce_gradients(model.parameters(), step_loss, team, geometry.share, bucket_numbers)
    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: t.numpy().tobytes() for name, t in {**named, "loss": step_loss}.items()}


def numbers(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.float32)


@pytest.mark.parametrize("bucket_numbers", [1, 3_000, 10**9])
@pytest.mark.parametrize(("size", "batch_size"), [(2, 2), (3, 1), (3, 2), (3, 8)])
def test_gradients_of_several_processes_are_those_of_the_whole_batch_at_once(
    size: int, batch_size: int, bucket_numbers: int
) -> None:
    """Also where 8 samples do not divide by the processes, and where a process has none at all."""
    whole = gradients(Team(Place(), 60), SAMPLES, bucket_numbers)
    first, *others = in_team(size, gradients, batch_size, bucket_numbers)
    assert all(other == first for other in others), "not the same bits on each process"
    assert first.keys() == whole.keys()
    for name, content in whole.items():
        expected = numbers(content)
        torch.testing.assert_close(
            numbers(first[name]), expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max())
        )


def test_one_process_keeps_its_gradients_as_they_are() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor([1.0, 2.0, 3.0])
    loss = torch.tensor(4.0)
    reduce_gradients([parameter], loss, Team(Place(), 60), 0.5)
    assert parameter.grad.tolist() == [1.0, 2.0, 3.0]
    assert float(loss) == 4.0
