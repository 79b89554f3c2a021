"""Which checkpoint is meant by a step, a name, `latest` and `best`."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import NotFound
from app.observe.chosen_checkpoint import chosen_checkpoint
from app.observe.rows import encode_row
from app.run.layout import METRICS_KEY, CheckpointName
from app.run.view import read_view
from app.stores.contract import Store
from app.stores.local import LocalStore
from tests.support.rows import row
from tests.support.stored_run import commit_step, go_on_from


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Of a run with checkpoints of steps 10, 20, 30 and 40."""
    store = LocalStore(tmp_path)
    for step in (10, 20, 30, 40):
        commit_step(store, step)
    return store


def measured(store: Store, losses: Sequence[tuple[int, float | None]], attempt: int = 1) -> None:
    """Let metrics.jsonl say these validation losses of these steps."""
    rows = [replace(row(s), validation_loss=loss, attempt=attempt) for s, loss in losses]
    store.put(METRICS_KEY, [encode_row(each) for each in rows])


def chosen(store: Store, text: str) -> CheckpointName:
    return chosen_checkpoint(store, read_view(store), text)


def test_a_step_a_name_and_latest_are_what_they_say(store: Store) -> None:
    assert chosen(store, "20") == chosen(store, str(CheckpointName(20, 1))) == CheckpointName(20, 1)
    assert chosen(store, "latest").step == 40
    with pytest.raises(NotFound, match="no checkpoint '25'; there are steps 40, 30, 20, 10"):
        chosen(store, "25")


def test_best_is_the_lowest_validation_loss_that_was_measured_of_a_checkpoint(store: Store) -> None:
    measured(store, [(10, 4.0), (15, 1.0), (20, 3.0), (30, 3.5), (40, None)])
    assert chosen(store, "best").step == 20


def test_of_checkpoints_that_tie_the_newest_is_the_best(store: Store) -> None:
    measured(store, [(10, 3.0), (20, 3.0), (30, 3.0), (40, 4.0)])
    assert chosen(store, "best").step == 30


def test_a_loss_that_is_no_number_is_not_the_best(store: Store) -> None:
    measured(store, [(10, math.nan), (20, 3.0), (30, -math.inf)])
    assert chosen(store, "best").step == 20


def test_a_row_of_another_attempt_says_nothing_about_a_checkpoint(store: Store) -> None:
    """Step 20 was made twice: by attempt 1, and by attempt 2, whose rows replaced the former."""
    go_on_from(store, 10, epoch=2)
    measured(store, [(20, 3.0), (40, 2.0)], attempt=2)
    commit_step(store, 20, epoch=2)
    assert chosen(store, "best") == CheckpointName(20, 2)


@pytest.mark.parametrize("losses", [[], [(10, None), (25, 1.0)]])
def test_where_no_checkpoint_was_measured_none_is_the_best(
    losses: list[tuple[int, float | None]], store: Store
) -> None:
    measured(store, losses)
    with pytest.raises(NotFound, match="VAL_EVERY_STEPS"):
        chosen(store, "best")


def test_a_run_without_checkpoints_has_no_best_one(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="holds no checkpoint yet"):
        chosen(LocalStore(tmp_path / "empty"), "best")
