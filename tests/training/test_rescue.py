"""Whether another process commits the last step in the place of rank 0, at the last moment too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.run.layout import LEASE
from app.run.lease import Lease, read_lease
from app.run.view import read_view
from app.settings.load import load_settings
from app.state.random_state import RandomState
from app.stores.contract import ExclusiveLock, Store
from app.stores.opening import open_store
from app.training.attempt import Attempt
from app.training.plan import Plan, settings_in_common
from app.training.rescue import Remains, rescue
from app.training.start import open_attempt
from app.training.train_torch import train
from tests.support.quiet_stop import QuietStop
from tests.support.stored_run import committed_steps

TTL = 0.5  # seconds of rank 0's lease


class SeenByAnother:
    """The store as the rescuer sees it: no lock of rank 0's kernel, and `then` happens once the
    lease was read for the first time."""

    def __init__(self, store: Store, then: Callable[[], object]) -> None:
        self._store, self._then = store, [then]

    def exclusive_lock(self) -> ExclusiveLock | None:
        return None

    def get(self, key: str, *most: Any, **named: Any) -> Any:
        found = self._store.get(key, *most, **named)
        if key == LEASE and self._then:
            self._then.pop()()
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Run:
    """A run with a checkpoint of step 2, whose rank 0 holds the lease without renewing it."""

    def __init__(self, attempt: Attempt, variables: dict[str, str], uri: str) -> None:
        self._attempt, self._variables = attempt, variables
        self.store = open_store(uri, "tiny")
        self.rank_0 = Lease(SeenByAnother(self.store, bool), TTL, "rank 0")
        self.rank_0.acquire(0, print, lambda: False)

    def rescued(self, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]) -> None:
        """A follower that has made step 3 finds rank 0 gone; `meanwhile` happens as it looks."""
        attempt, settings = self._attempt, load_settings(self._variables)
        plan = Plan(
            settings=settings_in_common(settings),
            record=attempt.checkpointing.record,
            step=2,
            resumed=True,
            validation_loss=None,
            random=RandomState.capture(),
            seq_len=attempt.geometry.seq_len,
            tokens=Path("tokens"),
            source="source",
            tokenizer=attempt.corpus.tokenizer.directory,
            holder="rank 0",
            epoch=self.rank_0.epoch,
        )
        remains = Remains(3, attempt.model, attempt.optimizer, 1.5, 0.5, None)
        seen = SeenByAnother(self.store, meanwhile)
        monkeypatch.setattr("app.training.rescue.open_store", lambda *_: seen)
        rescue(remains, plan, settings, attempt.compute, QuietStop())


@pytest.fixture
def run(job_environment: dict[str, str], tmp_path: Path) -> Run:
    uri = f"file://{tmp_path}/store"
    variables = {name.lower(): value for name, value in job_environment.items()}
    variables |= {"checkpoint_uri": uri, "trainer": "torch", "total_steps": "2"}
    attempt = open_attempt(load_settings(variables), QuietStop())
    assert attempt is not None
    train(attempt)
    attempt.finish()
    attempt.close("the test goes on")
    return Run(attempt, variables, uri)


def test_a_lease_that_rank_0_died_with_is_taken_and_its_last_step_committed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.rescued(monkeypatch, bool)
    assert committed_steps(run.store) == [3, 2]
    assert read_view(run.store).committed[0].epoch == run.rank_0.epoch + 1


def test_a_lease_that_rank_0_gives_back_as_it_is_taken_is_given_back_and_nothing_written(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever gives the lease back has ended in order, and has said what the run's end is."""
    run.rescued(monkeypatch, run.rank_0.release)
    assert committed_steps(run.store) == [2]
    lease = read_lease(run.store)
    assert lease is not None and lease[0].released
    assert lease[0].epoch == run.rank_0.epoch + 1, "it was not taken: this tests nothing"


def test_a_lease_that_somebody_else_takes_meanwhile_is_his(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    successor = Lease(SeenByAnother(run.store, bool), 60, "another start")

    def taken() -> None:
        run.rank_0.release()
        successor.acquire(0, print, lambda: False)
        successor.release()

    run.rescued(monkeypatch, taken)
    assert committed_steps(run.store) == [2]
