"""Power cuts at every instant of a write to a volume, and of whole commits."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from app.run.checkpoints import read_latest
from app.run.fetching import newest_valid
from app.run.layout import CheckpointName
from app.run.retention import prune
from app.run.view import read_view
from app.stores.contract import RESERVED, Store
from app.stores.opening import open_store
from tests.support import needs
from tests.support.power_cut import Files, PowerCuts
from tests.support.stored_run import FreeLease, commit_step

pytestmark = needs.proc


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    folder = tmp_path / "volume"
    folder.mkdir()
    return folder


@pytest.fixture
def store(volume: Path) -> Store:
    return open_store(f"file://{volume}", "run")


@pytest.fixture
def power(volume: Path) -> Iterator[PowerCuts]:
    with ExitStack() as kept:
        yield PowerCuts(volume, kept)


def replace_if_match(store: Store) -> None:
    assert store.put_if_match("a/b", b"new", store.get("a/b")[1])


NEW, FORMER = {"run/a/c": b"new"}, {"run/a/b": b"former"}
REPLACED, MOVED = {"run/a/b": b"new"}, {"run/d/e": b"former"}


@pytest.mark.parametrize(
    ("write", "between", "after"),
    [
        (lambda store: store.put("a/c", [b"n", b"ew"]), [], FORMER | NEW),
        (lambda store: store.put("a/b", [b"n", b"ew"]), [], REPLACED),
        (lambda store: store.put_if_absent("a/c", b"new"), [], FORMER | NEW),
        (replace_if_match, [], REPLACED),
        (lambda store: store.move("a/b", "d/e"), [FORMER | MOVED], MOVED),
    ],
    ids=["create", "replace", "if absent", "if match", "move"],
)
def test_a_power_cut_leaves_what_was_or_what_is_written_and_nothing_half(
    power: PowerCuts,
    store: Store,
    write: Callable[[Store], object],
    between: list[Files],
    after: Files,
) -> None:
    with power.at_each_call():
        store.put("a/b", [b"former"])
    with power.at_each_call() as cuts:
        write(store)
    for call, left in cuts:
        assert objects(left) in [FORMER, *between, after], f"after {call}"
    assert [objects(left) for left in power.now()] == [after, after], "it was not durable on return"


def test_a_power_cut_costs_no_checkpoint_whose_commit_returned(
    power: PowerCuts, store: Store, tmp_path: Path
) -> None:
    promised: CheckpointName | None = None
    for step in (1, 2, 3):
        with power.at_each_call() as cuts:
            name = commit_step(store, step)
        assert_resumable(cuts, promised, tmp_path / f"commit-{step}")
        promised = name
        returned = [("the commit returned", left) for left in power.now()]
        with power.at_each_call() as cuts:
            prune(store, read_view(store), 0, [], FreeLease(store))
        assert_resumable(returned + cuts, promised, tmp_path / f"prune-{step}")


def objects(left: Files) -> Files:
    """Without what is the store's own: locks, and files that have no name yet."""
    return {key: left[key] for key in left if not key.rsplit("/", 1)[-1].startswith(RESERVED)}


def assert_resumable(
    cuts: list[tuple[str, Files]], promised: CheckpointName | None, scratch: Path
) -> None:
    different = {tuple(left.items()): (call, left) for call, left in cuts}
    for number, (call, left) in enumerate(different.values()):
        folder = scratch / str(number)
        for key, content in left.items():
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            (folder / key).write_bytes(content)
        store = open_store(f"file://{folder}", "run")
        found = newest_valid(store, read_view(store), folder / "scratch")
        committed = [stored.name for stored in read_view(store).checkpoints if stored.committed]
        assert read_latest(store) in [None, *map(str, committed)], f"after {call}"
        if promised is not None:
            assert found is not None and found.name >= promised, f"lost after {call}"
        assert found is None or not found.damaged, f"after {call}"
