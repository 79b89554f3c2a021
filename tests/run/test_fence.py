"""The fence that the names of attempts are."""

import pytest

from app.run.fence import Fences, fences
from app.run.journal import AttemptJournal
from app.stores.contract import Store
from tests.support.stored_run import attempt_record


@pytest.mark.parametrize(
    ("step", "epoch", "late"),
    [
        (14, 1, False),  # what attempt 2 went on from
        (15, 1, True),  # attempt 1 woke up after that
        (20, 2, False),
        (25, 2, True),
        (99, 3, False),  # the newest attempt's own
    ],
)
def test_a_checkpoint_beyond_a_later_start_is_late(step: int, epoch: int, late: bool) -> None:
    assert Fences([(1, 0), (2, 14), (3, 20)]).late(step, epoch) is late


def test_an_attempt_that_fell_back_makes_everything_after_its_start_late() -> None:
    assert Fences([(1, 0), (2, 50), (3, 10)]).late(50, 1)
    assert not Fences([(1, 0), (2, 50), (3, 10)]).late(10, 2)


def test_the_names_alone_are_the_fence(store: Store) -> None:
    AttemptJournal(store, attempt_record(1, 0)).begin()
    AttemptJournal(store, attempt_record(2, 14)).begin()
    store.put("attempts/notes.txt", [b"a person was here"])
    assert list(fences(store).starts) == [(1, 0), (2, 14)]
