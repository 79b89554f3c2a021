"""What the processes of a team say to each other."""

import os
import time
from typing import Any

import pytest
import torch

from app.errors import LostPeer
from app.ranks.team import Team, Wish
from app.settings.place import Place
from tests.support.team import PEER_TIMEOUT, in_team


def spoken(team: Team) -> list[Any]:
    tensor = torch.full((3,), float(team.rank))
    team.copy_from_rank_0([tensor])
    return [
        int(team.agree(Wish.STOP if team.rank == 1 else Wish.GO_ON)),
        team.stopping,
        team.sum([1.0, team.rank]),
        team.document(b"a plan" if team.rank == 0 else b""),
        team.all_have(7),
        team.all_have(team.rank),
        tensor.tolist(),
        team.gather(torch.tensor([team.rank])).tolist(),
    ]


def test_all_hear_the_same() -> None:
    ours = [2, True, [3.0, 3.0], b"a plan", True, False, [0.0] * 3, [[0], [1], [2]]]
    assert in_team(3, spoken) == [ours] * 3


def told(team: Team) -> list[tuple[Any, ...]]:
    heard: list[tuple[Any, ...]] = []
    for step in (1, 2):
        team.tell(step * (team.rank + 0.5))
        heard.append((int(team.agree(Wish.STOP)), team.take_told(), team.take_told()))
        heard.append((int(team.agree(Wish.GO_ON)), team.take_told(), None))
    return heard


def test_an_agreement_takes_along_what_each_has_told_and_once() -> None:
    first, second = [0.5, 1.5, 2.5], [1.0, 3.0, 5.0]
    ours = [(2, first, None), (0, None, None), (2, second, None), (0, None, None)]
    assert in_team(3, told) == [ours] * 3


def test_a_team_of_one_has_no_process_group_and_says_everything_to_itself() -> None:
    team = Team(Place(), 60)
    assert team.agree(Wish.STOP) is Wish.STOP
    assert team.sum([1.5]) == [1.5]
    assert team.all_have(3)
    assert not torch.distributed.is_initialized()


def without_the_last(team: Team) -> float | str:
    """One process ends; how long the others take to notice."""
    team.agree(Wish.GO_ON)
    if team.rank == 2:
        os._exit(0)
    began = time.monotonic()
    try:
        for _ in range(10):
            team.agree(Wish.GO_ON)
    except LostPeer:
        return time.monotonic() - began
    return "nothing noticed"


def test_a_process_that_ends_is_noticed_at_once() -> None:
    first, second, gone = in_team(3, without_the_last)
    assert gone is None
    assert isinstance(first, float) and isinstance(second, float), (first, second)
    assert max(first, second) < PEER_TIMEOUT / 2


class OnCard:
    """A tensor, its sum and its group as they are on a card, where nothing can be waited for."""

    is_cuda = True

    def __init__(self, completed: bool, failure: Exception | None = None) -> None:
        self._completed, self._failure = completed, failure
        self.aborted = self.waited = 0

    def is_completed(self) -> bool:
        return self._completed

    def exception(self) -> Exception | None:
        return self._failure

    def wait(self, seconds: object) -> None:
        self.waited += 1

    def abort(self) -> None:
        self.aborted += 1


def summed_on_card(card: Any) -> None:
    team = Team(Place(), 0.05)
    team.settled()
    team.cards = card
    team.end_sum(card, card)


@pytest.mark.parametrize(
    ("card", "why"),
    [
        (OnCard(completed=False), "was silent for 0.05 s"),
        (OnCard(completed=True, failure=RuntimeError("NCCL")), "is gone"),
    ],
    ids=["it never ends", "NCCL has given it up"],
)
def test_a_sum_between_cards_that_misses_a_peer_is_aborted_and_its_result_not_used(
    card: OnCard, why: str
) -> None:
    """Without a card: what is asked of NCCL. What it answers was never tried."""
    with pytest.raises(LostPeer, match=why):
        summed_on_card(card)
    assert (card.aborted, card.waited) == (1, 0)


def test_a_sum_between_cards_that_is_over_is_used() -> None:
    card = OnCard(completed=True)
    summed_on_card(card)
    assert (card.aborted, card.waited) == (0, 1)


@pytest.mark.parametrize("wish", list(Wish))
def test_the_greatest_wish_counts(wish: Wish) -> None:
    assert in_team(2, wished, int(wish)) == [(int(wish), wish >= Wish.STOP)] * 2


def wished(team: Team, wish: int) -> tuple[int, bool]:
    return int(team.agree(Wish(wish if team.rank else 0))), team.stopping
