"""A checkpoint that is copied in several calls, from a store that fails or changes meanwhile."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.errors import Damaged, NotFound, Unavailable
from app.run.committing import commit
from app.run.layout import MANIFEST, CheckpointName
from app.run.pulling import Pull, begun, discard
from app.stores.contract import Store
from app.stores.durable_files import try_flock
from app.stores.local import LocalStore
from tests.support.stored_run import FreeLease

MIB = 2**20
CONTENTS = {
    "config.json": b"{}",
    "empty": b"",
    "model.safetensors": random.Random(1).randbytes(3 * MIB + 5),
    "state.json": b"[1]",
}
NAME = CheckpointName(40, 1)


class Breaking:
    """A store whose answers break off: after each of so many bytes in turn, then no more."""

    def __init__(self, store: Store, *after: int) -> None:
        self._store, self._after = store, list(after)
        self.asked: list[tuple[str, int]] = []  # file, and the byte from which on

    def blocks(self, key: str, start: int, end: int) -> Iterator[bytes]:
        self.asked.append((key.rsplit("/", 1)[1], start))
        left = self._after[0] if self._after and end > MIB else None
        for block in self._store.blocks(key, start, end):
            if left is not None and left < len(block):
                self._after.pop(0)
                yield block[:left]
                raise Unavailable("it went away")
            left = None if left is None else left - len(block)
            yield block

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.fixture
def run(tmp_path: Path) -> Store:
    store = LocalStore(tmp_path / "store")
    commit(store, NAME, {k: [v] for k, v in CONTENTS.items()}, 1.0, FreeLease(store))
    return store


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.pull-{NAME}")


def test_the_folder_holds_every_byte_and_nothing_else_is_left(run: Store, tmp_path: Path) -> None:
    sizes: list[int] = []
    arrived: list[int] = []
    target = tmp_path / "new" / "model"
    Pull(run, NAME, target, begins=sizes.append, arrived=arrived.append).run()
    assert contents(target) == CONTENTS
    assert sizes == [sum(map(len, CONTENTS.values()))] == [sum(arrived)]
    assert list(target.parent.iterdir()) == [target]


def test_what_is_left_out_is_left_out(run: Store, tmp_path: Path) -> None:
    Pull(run, NAME, tmp_path / "model").run(leave_out=["model.safetensors"])
    assert sorted(contents(tmp_path / "model")) == ["config.json", "empty", "state.json"]


def test_a_store_that_goes_away_is_asked_again_for_what_is_missing(
    run: Store, tmp_path: Path
) -> None:
    """Each time something arrived, so it is asked more often than there are pauses."""
    store: Any = Breaking(run, MIB, 100, MIB - 1, 1)
    Pull(store, NAME, tmp_path / "model", pauses=(0.0, 0.0)).run()
    assert contents(tmp_path / "model") == CONTENTS
    starts = [start for file, start in store.asked if file == "model.safetensors"]
    assert starts == [0, MIB, MIB + 100, 2 * MIB + 99, 2 * MIB + 100]


def test_a_pull_that_was_given_up_is_gone_on_with(run: Store, tmp_path: Path) -> None:
    target = tmp_path / "model"
    store: Any = Breaking(run, 2 * MIB + 7, 0, 0)
    with pytest.raises(Unavailable, match=r"went away. 2\.1 MB of model.safetensors are here"):
        Pull(store, NAME, target, pauses=(0.0, 0.0)).run()
    assert not target.exists() and begun(target) == [NAME]
    again: Any = Breaking(run)
    arrived: list[int] = []
    Pull(again, NAME, target, arrived=arrived.append).run()
    assert contents(target) == CONTENTS and begun(target) == []
    assert ("model.safetensors", 2 * MIB + 7) in again.asked
    assert ("config.json", len(CONTENTS["config.json"])) in again.asked
    assert sum(arrived) == sum(map(len, CONTENTS.values()))


@pytest.mark.parametrize(
    "left",
    [b"wrong", b"x" * (4 * MIB), bytes(3 * MIB + 5)],
    ids=["shorter", "longer", "as long"],
)
def test_what_an_earlier_pull_left_is_not_believed(
    left: bytes, run: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "model"
    partial(target).mkdir()
    (partial(target) / "model.safetensors").write_bytes(left)
    (partial(target) / "something.else").write_bytes(b"of a pull of more files")
    Pull(run, NAME, target).run()
    assert contents(target) == CONTENTS
    assert ("fetched again" in caplog.text) == (len(left) <= len(CONTENTS["model.safetensors"]))


def test_a_damaged_file_never_gets_the_final_name(run: Store, tmp_path: Path) -> None:
    path = tmp_path / "store" / NAME.key("model.safetensors")
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(Damaged, match=r"model.safetensors does not match its SHA-256"):
        Pull(run, NAME, tmp_path / "model").run()
    assert not (tmp_path / "model").exists()


def test_a_missing_file_is_damage_and_a_missing_checkpoint_is_not(
    run: Store, tmp_path: Path
) -> None:
    run.delete([NAME.key("state.json")])
    with pytest.raises(Damaged, match=r"state.json is missing"):
        Pull(run, NAME, tmp_path / "model").run()
    run.delete([NAME.key(MANIFEST)])
    with pytest.raises(NotFound):
        Pull(run, NAME, tmp_path / "model").run()


def test_a_checkpoint_that_is_removed_meanwhile_is_not_found(run: Store, tmp_path: Path) -> None:
    def removed(_: int) -> None:  # manifest first, as retention does
        run.delete([NAME.key(MANIFEST)])
        run.delete([NAME.key(file) for file in CONTENTS])

    with pytest.raises(NotFound):
        Pull(run, NAME, tmp_path / "model", begins=removed).run()
    assert not (tmp_path / "model").exists()


def test_a_file_that_is_replaced_meanwhile_is_damage_and_no_mixture(
    run: Store, tmp_path: Path
) -> None:
    other = random.Random(2).randbytes(len(CONTENTS["model.safetensors"]))

    def replaced(_: int) -> None:
        run.put(NAME.key("model.safetensors"), [other])

    with pytest.raises(Damaged, match=r"model.safetensors does not match"):
        Pull(run, NAME, tmp_path / "model", begins=replaced).run()
    assert not (tmp_path / "model").exists()


def test_two_pulls_into_one_folder_do_not_mix(run: Store, tmp_path: Path) -> None:
    target = tmp_path / "model"
    partial(target).mkdir()
    descriptor = os.open(partial(target), os.O_RDONLY)
    assert try_flock(descriptor)
    for attempt in (Pull(run, NAME, target).run, lambda: discard(target, NAME)):
        with pytest.raises(Unavailable, match="another process is pulling"):
            attempt()
    os.close(descriptor)
    discard(target, NAME)
    assert begun(target) == []


def test_only_folders_of_a_pull_to_this_place_count_as_begun(tmp_path: Path) -> None:
    target = tmp_path / "[mo]*del"
    assert begun(tmp_path / "missing" / "model") == begun(target) == []
    for name in (f".[mo]*del.pull-{NAME}", ".[mo]*del.pull-x", f".model.pull-{NAME}"):
        (tmp_path / name).mkdir()
    assert begun(target) == [NAME]
