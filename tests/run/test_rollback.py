"""An operator's return to a checkpoint, killed before and after each of its writes."""

from itertools import count
from pathlib import Path

import pytest

from app.run.layout import MANIFEST, CheckpointName
from app.run.retention import clean_up, quarantine
from app.run.rollback import accepted, carry_out, rollback_to
from app.run.view import read_view
from app.stores.contract import Store
from app.stores.opening import open_store
from tests.support.mortal_store import Died, MortalStore
from tests.support.stored_run import FILES, FreeLease, commit_step


class OperatorsLease(FreeLease):
    """The lease of a command, taken after all attempts."""

    epoch, holder = 9, "operator:1:abc"


def whole(store: Store, name: CheckpointName) -> bool:
    """Whether every file of it lies in one place: among the checkpoints, or in quarantine."""
    places = (name.key(), name.quarantine_key())
    kept = [{info.key.removeprefix(p) for info in store.list(p)} for p in places]
    return any({*FILES, MANIFEST} <= files for files in kept)


@pytest.mark.parametrize("command", ["rollback", "accept"])
def test_wherever_it_is_killed_no_checkpoint_is_lost_and_the_run_goes_on_from_one(
    command: str, tmp_path: Path
) -> None:
    for dies_at in count(1):
        store = open_store(f"file://{tmp_path}/{dies_at}", "run")
        names = [commit_step(store, step) for step in (2, 4, 6)]
        if command == "accept":
            quarantine(store, names[2], "taken for damaged", FreeLease(store))
        view = read_view(store)
        change = rollback_to(view, "2") if command == "rollback" else accepted(view, "6")
        mortal: Store = MortalStore(store, dies_at)  # type: ignore[assignment]
        try:
            carry_out(change, mortal, OperatorsLease(mortal))  # type: ignore[arg-type]
            done = True
        except Died:
            done = False
        clean_up(store, read_view(store), 10, FreeLease(store))
        after = read_view(store)
        assert all(whole(store, name) for name in names), dies_at
        possible = {2, 6} if command == "rollback" else {4, 6}
        assert after.newest_step in ({change.to.step} if done else possible), dies_at
        if done:
            break
    assert dies_at > 5
