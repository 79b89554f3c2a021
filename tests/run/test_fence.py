"""The fence that the names of attempts are."""

from pathlib import Path

import pytest

from app.run.fence import Fences
from app.run.fetching import newest_valid
from app.run.journal import AttemptJournal
from app.run.layout import AttemptName, CheckpointName
from app.run.view import read_view
from app.stores.contract import Store
from tests.support.stored_run import attempt_record, commit_step


def late(attempts: list[AttemptName], step: int, epoch: int) -> bool:
    return Fences(attempts).late(CheckpointName(step, epoch))


@pytest.mark.parametrize(
    ("step", "epoch", "is_late"),
    [
        (14, 1, False),  # what attempt 2 went on from
        (15, 1, True),  # attempt 1 woke up after that
        (20, 2, False),
        (25, 2, True),
        (99, 3, False),  # the newest attempt's own
    ],
)
@pytest.mark.parametrize("origins", [(1, 2), (None, None)], ids=["", "an earlier version"])
def test_a_checkpoint_beyond_a_later_start_is_late(
    step: int, epoch: int, is_late: bool, origins: tuple[int | None, int | None]
) -> None:
    second, third = AttemptName(2, 14, origins[0]), AttemptName(3, 20, origins[1])
    assert late([AttemptName(1, 0), second, third], step, epoch) is is_late


def test_an_attempt_that_fell_back_makes_everything_after_its_start_late() -> None:
    fell_back = [AttemptName(1, 0), AttemptName(2, 50, 1), AttemptName(3, 10, 1)]
    assert late(fell_back, 50, 1)
    assert not late(fell_back, 10, 2)


@pytest.mark.parametrize("origin", [1, None], ids=["", "an earlier version"])
def test_what_a_later_attempt_went_on_from_is_never_late(origin: int | None) -> None:
    attempts = [AttemptName(1, 0), AttemptName(2, 20, 1), AttemptName(3, 40, origin)]
    assert not late(attempts, 40, 1)
    assert late(attempts, 41, 1)


def test_what_led_to_a_checkpoint_that_a_later_attempt_went_on_from_is_never_late() -> None:
    attempts = [AttemptName(1, 0), AttemptName(2, 20, 1), AttemptName(3, 40, 1)]
    attempts += [AttemptName(4, 60, 3), AttemptName(5, 80, 4)]
    assert not any(late(attempts, *name) for name in ((30, 1), (40, 1), (50, 3), (60, 3), (80, 4)))
    assert late(attempts, 50, 1) and late(attempts, 61, 3) and late(attempts, 30, 0)


def test_the_names_alone_are_the_fence(store: Store) -> None:
    AttemptJournal(store, attempt_record(1, 0)).begin()
    second = attempt_record(2, 14).model_copy(update={"resumed_from": str(CheckpointName(14, 1))})
    AttemptJournal(store, second).begin()
    store.put("attempts/notes.txt", [b"a person was here"])
    assert read_view(store).attempts == [AttemptName(1, 0), AttemptName(2, 14, 1)]


def test_an_attempt_that_was_paused_before_its_first_words_takes_nothing_from_its_successors(
    store: Store, tmp_path: Path
) -> None:
    """Attempt 1 sleeps before its manifest; 2 has read the store, and sleeps before its words."""
    store.put(AttemptName(1, 0).key, [b"{}"])
    commit_step(store, 20)
    woken = commit_step(store, 40)  # attempt 1 wakes up
    store.put(AttemptName(3, 40, 1).key, [b"{}"])
    store.put(AttemptName(2, 20, 1).key, [b"{}"])  # attempt 2 wakes up
    found = newest_valid(store, read_view(store), tmp_path)
    assert found is not None and found.name == woken
