"""Weights and moments that differ between processes are found, and named, before they are saved."""

import pytest
import torch
from torch import Tensor

from app.ranks.checksum import DifferentWeights, check_same_weights
from app.ranks.team import Team
from app.state.snapshot import shared_tensors
from tests.support.team import in_team
from tests.support.training_state import trained


def compared(team: Team, wrong_rank: int | None) -> str:
    """What is said of three parameters, of which that process has one with a wrong bit."""
    weights: dict[str, Tensor] = {
        name: torch.arange(1, 2000, dtype=torch.float32) / 7 for name in ("first", "second", "last")
    }
    if team.rank == wrong_rank:
        weights["second"].view(torch.int32)[1234] ^= 1 << 9
    try:
        check_same_weights(team, weights, 40)
    except DifferentWeights as error:
        return str(error)
    return ""


@pytest.mark.parametrize("wrong_rank", [0, 2])
def test_one_wrong_bit_of_one_process_ends_all_with_the_rank_and_the_parameter(
    wrong_rank: int,
) -> None:
    said = in_team(3, compared, wrong_rank)
    assert len(set(said)) == 1
    assert f"after step 40 second of rank {wrong_rank} is not that of the other" in said[0]


def test_of_two_processes_both_are_named() -> None:
    assert "second of rank 0 and 1 is not" in in_team(2, compared, 1)[0]


def trained_apart(team: Team, moment: str) -> str:
    """The same step made by each, after which the last process has a moment with a wrong bit."""
    model, optimizer = trained(1)
    parameter = next(model.parameters())
    if team.rank == team.size - 1:
        optimizer.state[parameter][moment].view(torch.int32).reshape(-1)[0] ^= 1
    try:
        check_same_weights(team, shared_tensors(model, optimizer), 1)
    except DifferentWeights as error:
        return str(error)
    return ""


@pytest.mark.parametrize("moment", ["exp_avg", "exp_avg_sq", "step"])
def test_a_wrong_bit_of_a_moment_is_found_before_it_is_one_of_a_weight(moment: str) -> None:
    said = in_team(3, trained_apart, moment)
    assert len(set(said)) == 1
    assert f"after step 1 {moment}." in said[0] and " of rank 2 is not that" in said[0]


def test_equal_weights_are_equal() -> None:
    assert in_team(3, compared, None) == ["", "", ""]
