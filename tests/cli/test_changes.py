"""Commands that change a run: what they say, what they change, and what they leave alone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from app.cli import parser as cli
from app.errors import Fenced
from app.run.committing import commit
from app.run.journal import AttemptJournal
from app.run.layout import LEASE, MANIFEST, CheckpointName
from app.run.lease import Lease
from app.run.record import create_record
from app.run.retention import clean_up, quarantine
from app.run.view import read_view
from app.state.snapshot import STATE_FILES
from app.stores.contract import Store
from app.stores.local import LocalStore
from app.stores.opening import open_store
from tests.support.stored_run import (
    IDENTITY,
    FreeLease,
    attempt_record,
    committed_steps,
    go_on_from,
    stored_attempts,
)
from tests.support.training_state import state_without_tensors

pytestmark = pytest.mark.usefixtures("nothing_set")

Command = Callable[..., tuple[int, str]]


def named(step: int, epoch: int = 1) -> CheckpointName:
    return CheckpointName(step, epoch)


@pytest.fixture
def run(tmp_path: Path) -> Store:
    """A run with an attempt and the checkpoints of steps 2, 4 and 6."""
    store = open_store(f"file://{tmp_path}", "tiny")
    create_record(store, "tiny", IDENTITY, 10)
    AttemptJournal(store, attempt_record(1)).begin()
    for step in (2, 4, 6):
        commit(store, named(step), state_without_tensors(step), 10.0 - step, FreeLease(store))
    return store


@pytest.fixture
def command(run: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command on the run. Returns the exit code, and all that was printed."""

    def command(*words: str) -> tuple[int, str]:
        code = cli.main(
            [
                *words,
                "--model=tiny",
                f"--checkpoint_uri=file://{tmp_path}",
                f"--data_dir={tmp_path}/data",
                "--lease_wait=0",
            ]
        )
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return command


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that is taken has no lock of this kernel, as that of another machine."""
    monkeypatch.setattr(LocalStore, "exclusive_lock", lambda store: None)


def keys(run: Store) -> list[str]:
    return [info.key for info in run.list("")]


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    "words",
    [
        ("checkpoints", "rollback", "--to", "2"),
        ("checkpoints", "prune", "--keep", "0"),
        ("quarantine", "purge"),
        ("checkpoints", "takeover"),
        ("checkpoints", "accept", str(named(8))),
    ],
)
def test_nothing_is_changed_without_a_yes(
    command: Command, run: Store, words: tuple[str, ...]
) -> None:
    commit(run, named(8), state_without_tensors(8), 1.0, FreeLease(run))
    quarantine(run, named(8), "damaged", FreeLease(run))
    Lease(run, 10, "other:1:x").acquire(0, print, lambda: False)
    before = keys(run)
    code, text = command(*words)
    assert code == 78 and "nothing was changed" in text and "--yes" in text, text
    assert keys(run) == before


def test_a_rollback_sets_aside_what_lies_beyond_and_the_run_goes_on_from_there(
    command: Command, run: Store
) -> None:
    code, text = command("checkpoints", "rollback", "--to", "2", "--yes")
    assert code == 0, text
    assert f"the run will go on from step 2 ({named(2)})" in text
    assert f"to be set aside in quarantine/: {named(4)}, {named(6)}" in text
    view = read_view(run)
    assert (view.committed, view.latest) == ([named(2)], str(named(2)))
    assert view.quarantined == {str(named(4)), str(named(6))}
    assert command("checkpoints", "verify")[0] == 0
    last = stored_attempts(run, newest=1)[0]
    assert (last.resumed_from, last.steps, last.trainer) == (str(named(2)), 0, "none")
    assert "an operator let the run go on" in command("checkpoints", "list")[1]


def test_a_rollback_that_is_killed_is_completed_by_the_next_start(
    command: Command, run: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on_from(run, 2, epoch=2)  # the first thing that it writes, where it goes to step 2
    clean_up(run, read_view(run), 3, FreeLease(run))
    assert committed_steps(run) == [2]


def test_a_rollback_to_the_newest_has_nothing_to_do(command: Command, run: Store) -> None:
    before = keys(run)
    code, text = command("checkpoints", "rollback", "--to", "6")
    assert code == 0 and "nothing to do" in text
    assert keys(run) == before


def test_a_rollback_to_one_of_two_with_the_same_step_sets_the_other_aside(
    command: Command, run: Store
) -> None:
    go_on_from(run, 4, epoch=2)
    commit(run, named(6, 2), state_without_tensors(6), 1.0, FreeLease(run))
    go_on_from(run, 6, epoch=3)
    assert command("checkpoints", "rollback", "--to", str(named(4)), "--yes")[0] == 0
    assert read_view(run).committed == [named(4), named(2)]


def test_nobody_goes_back_to_a_damaged_checkpoint(
    command: Command, run: Store, tmp_path: Path
) -> None:
    (tmp_path / "tiny" / named(2).key("state.json")).write_text("state.jsoN")
    code, text = command("checkpoints", "rollback", "--to", "2", "--yes")
    assert code == 78 and "is not whole, nothing was changed" in text
    assert committed_steps(run) == [6, 4, 2]


def test_while_the_run_is_held_by_another_it_is_not_changed(command: Command, run: Store) -> None:
    lease = Lease(run, 0.3, "other:1:x")
    lease.acquire(0, print, lambda: False)
    lease.start_renewing()
    try:
        code, text = command("checkpoints", "rollback", "--to", "2", "--yes")
    finally:
        lease.release()
    assert code == 75 and "nothing was changed" in text and "held by other:1:x" in text
    assert committed_steps(run) == [6, 4, 2]


def test_checkpoints_from_a_backup_that_a_short_start_made_late_are_accepted(
    command: Command, run: Store
) -> None:
    go_on_from(run, 0, epoch=2)
    assert committed_steps(run) == []
    code, text = command("checkpoints", "accept", "6", "--yes")
    assert code == 0, text
    assert committed_steps(run) == [6, 4, 2]
    assert read_view(run).latest == str(named(6))


def test_a_quarantined_checkpoint_comes_back_with_every_file(command: Command, run: Store) -> None:
    quarantine(run, named(6), "taken for damaged", FreeLease(run))
    go_on_from(run, 4, epoch=2)
    commit(run, named(8, 2), state_without_tensors(8), 1.0, FreeLease(run))
    code, text = command("checkpoints", "accept", str(named(6)), "--yes")
    assert code == 0, text
    assert "will come back from quarantine, and the run will go on from step 6" in text
    view = read_view(run)
    assert view.committed == [named(6), named(4), named(2)]
    assert view.quarantined == {str(named(8, 2))}
    assert command("checkpoints", "verify")[0] == 0


@pytest.mark.parametrize("word", ["6", "99", str(named(4))])
def test_only_what_is_late_or_in_quarantine_can_be_accepted(
    command: Command, run: Store, word: str
) -> None:
    quarantine(run, named(4), "damaged", FreeLease(run))
    code, text = command("checkpoints", "accept", word, "--yes")
    if word == str(named(4)):
        assert code == 0
    else:
        assert code == 78 and f"there are: {named(4)}" in text


def test_a_quarantined_checkpoint_that_is_damaged_stays_where_it_is(
    command: Command, run: Store
) -> None:
    run.put(named(6).key("state.json"), [b"{}"])
    quarantine(run, named(6), "damaged", FreeLease(run))
    before = keys(run)
    code, text = command("checkpoints", "accept", "6", "--yes")
    assert code == 78 and "is not whole" in text
    assert [key for key in keys(run) if key != LEASE] == [key for key in before if key != LEASE]


def test_pruning_deletes_nothing_beside_a_newest_that_cannot_be_read(
    command: Command, run: Store
) -> None:
    run.put(named(6).key("state.json"), [run.get(named(6).key("state.json"))[0].upper()])
    code, text = command("checkpoints", "prune", "--keep", "0", "--yes")
    assert code == 78 and f"{named(6)} is not whole, nothing was changed" in text
    assert committed_steps(run) == [6, 4, 2]


def test_a_checkpoint_under_another_ones_name_is_set_aside_by_the_command_that_verify_names(
    command: Command, run: Store
) -> None:
    copy, others = named(4, epoch=2), keys(run)
    for info in list(run.list(named(4).key())):
        run.put(copy.key(info.key.rpartition("/")[2]), [run.get(info.key)[0]])
    files = [key for key in keys(run) if key not in others]
    code, text = command("checkpoints", "verify")
    assert code == 78 and f"is damaged: {copy}" in text and "quarantine add" in text
    assert command("quarantine", "add", "--yes")[0] == 0
    assert all(key in keys(run) for key in others)
    moved = [key.replace("checkpoints/", "quarantine/") for key in files]
    assert all(key in keys(run) for key in moved) and not any(key in keys(run) for key in files)
    code, text = command("checkpoints", "verify")
    assert code == 0 and "3 checkpoints verified" in text
    assert "describes step 4-e1" in command("quarantine", "list")[1]
    assert "nothing is damaged" in command("quarantine", "add")[1]


def test_nothing_is_set_aside_where_no_whole_checkpoint_would_be_left(
    command: Command, run: Store
) -> None:
    for step in (2, 4, 6):
        run.put(named(step).key("state.json"), [b"{}"])
    code, text = command("quarantine", "add", "--yes")
    assert code == 78 and "no checkpoint is whole, nothing was changed" in text
    assert committed_steps(run) == [6, 4, 2]


def test_what_lies_in_quarantine_under_the_same_name_is_not_replaced(
    command: Command, run: Store
) -> None:
    quarantine(run, named(4), "late", FreeLease(run))
    run.put(named(4).key(MANIFEST), [b"{}"])
    before = {key: run.get(key)[0] for key in keys(run) if key != LEASE}
    code, text = command("quarantine", "add", "--yes")
    assert code == 78 and f"quarantine purge {named(4)}" in text
    assert {key: run.get(key)[0] for key in keys(run) if key != LEASE} == before


def test_pruning_keeps_the_best_and_the_newest(command: Command, run: Store) -> None:
    commit(run, named(8), state_without_tensors(8), 9.5, FreeLease(run))
    code, text = command("checkpoints", "prune", "--keep", "1", "--yes")
    assert code == 0, text
    assert f"2 checkpoints will be deleted: {named(2)}, {named(4)}" in text
    assert committed_steps(run) == [8, 6]
    assert "nothing to do" in command("checkpoints", "prune", "--keep", "1")[1]


def test_quarantine_is_listed_with_size_time_and_reason_and_purged_by_name_or_whole(
    command: Command, run: Store
) -> None:
    assert command("quarantine", "list") == (0, "nothing is in quarantine\n")
    assert "nothing to do" in command("quarantine", "purge")[1]
    for step in (4, 6):
        quarantine(run, named(step), f"bad {step}", FreeLease(run))
    run.put(f"{named(4).quarantine_key()}reason.json", [b"{"])
    text = command("quarantine", "list")[1].splitlines()
    assert text[0].startswith(str(named(4))) and "reason.json" in text[0]
    assert text[1].startswith(str(named(6))) and text[1].endswith("bad 6")
    assert command("quarantine", "purge", str(named(2)), "--yes")[0] == 78
    assert command("quarantine", "purge", str(named(6)), "--yes")[0] == 0
    assert read_view(run).quarantined == {str(named(4))}
    assert command("quarantine", "purge", "--yes")[0] == 0
    assert read_view(run).quarantined == frozenset()
    assert committed_steps(run) == [2]


@pytest.mark.usefixtures("elsewhere")
def test_the_run_of_a_dead_holder_is_free_at_once(command: Command, run: Store) -> None:
    assert "nobody holds" in command("checkpoints", "takeover")[1]
    Lease(run, 3600, "other:1:x").acquire(0, print, lambda: False)
    code, text = command("checkpoints", "takeover", "--yes")
    assert code == 0 and "other:1:x (epoch 1)" in text, text
    assert json.loads(run.get(LEASE)[0])["released"] is True
    assert command("checkpoints", "rollback", "--to", "2", "--yes")[0] == 0


@pytest.mark.usefixtures("elsewhere")
def test_a_holder_that_lives_after_all_loses_the_run_and_notices(
    command: Command, run: Store
) -> None:
    lease = Lease(run, 3600, "other:1:x")
    lease.acquire(0, print, lambda: False)
    assert command("checkpoints", "takeover", "--yes")[0] == 0
    lease.renew()
    assert lease.lost
    with pytest.raises(Fenced, match="was freed of this process"):
        lease.check()


def test_a_holder_that_lives_on_this_machine_is_not_taken_for_dead(
    command: Command, run: Store
) -> None:
    lease = Lease(run, 3600, "other:1:x")
    lease.acquire(0, print, lambda: False)
    code, text = command("checkpoints", "takeover", "--yes")
    assert code == 78 and "lives on this machine" in text, text
    lease.check()
    lease.release()


def test_a_run_without_its_record_is_told_from_none(command: Command, run: Store) -> None:
    run.delete(["run.json"])
    for words in (("checkpoints", "list"), ("checkpoints", "verify"), ("quarantine", "list")):
        code, text = command(*words)
        assert code == 78 and "python -m app run repair" in text, text


def test_what_is_left_of_a_return_from_quarantine_is_still_listed(run: Store) -> None:
    quarantine(run, named(6), "damaged", FreeLease(run))
    run.move(named(6).quarantine_key("state.json"), named(6).key("state.json"))
    clean_up(run, read_view(run), 3, FreeLease(run))
    files = {info.key.rpartition("/")[2] for info in run.list(named(6).quarantine_key())}
    assert files == {*STATE_FILES, MANIFEST, "reason.json"}


def test_a_rollback_deletes_nothing_of_a_checkpoint_that_lost_its_manifest(
    command: Command, run: Store
) -> None:
    run.delete([named(6).key(MANIFEST)])
    assert command("checkpoints", "rollback", "--to", "2", "--yes")[0] == 0
    clean_up(run, read_view(run), 9, FreeLease(run))
    kept = {info.key.rpartition("/")[2] for info in run.list(named(6).quarantine_key())}
    assert kept == {*STATE_FILES, "reason.json"}


@pytest.mark.parametrize("moved", [1, len(STATE_FILES), len(STATE_FILES) + 1])
def test_an_accept_that_was_killed_can_be_given_again(
    command: Command, run: Store, moved: int
) -> None:
    quarantine(run, named(6), "taken for damaged", FreeLease(run))
    for file in [*STATE_FILES, MANIFEST][:moved]:
        run.move(named(6).quarantine_key(file), named(6).key(file))
    code, text = command("checkpoints", "accept", str(named(6)), "--yes")
    assert code == 0, text
    view = read_view(run)
    assert view.committed[0] == named(6) and not view.quarantined
    assert command("checkpoints", "verify")[0] == 0


@pytest.mark.parametrize(
    "words",
    [("checkpoints", "prune", "--keep", "0"), ("quarantine", "purge")],
    ids=["prune", "purge"],
)
def test_where_deletion_is_forbidden_nothing_is_promised(
    command: Command, run: Store, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    quarantine(run, named(6), "damaged", FreeLease(run))
    monkeypatch.setattr(LocalStore, "deletes", False)
    before = keys(run)
    code, text = command(*words, "--yes")
    assert code == 78 and "forbids deletion" in text, text
    assert set(keys(run)) - {LEASE} == set(before) - {LEASE}
