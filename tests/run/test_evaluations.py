"""Results of evaluations: kept beside the checkpoints, and in nobody's way."""

import json

import pytest

from app.errors import NotFound
from app.run.evaluations import Evaluation, evaluations_of, latest_values, write_evaluation
from app.run.layout import EVALUATIONS, RECORD, CheckpointName, of_a_run
from app.run.retention import prune, quarantine
from app.run.view import read_view_without_record
from app.stores.contract import Store
from tests.support.stored_run import FreeLease, commit_step

NAME = CheckpointName(20, 1)


def result(
    value: float = 2.5, name: CheckpointName = NAME, of: str = "builtin", limit: int = 0
) -> Evaluation:
    return Evaluation(
        step=name.step,
        checkpoint=str(name),
        weights="0" * 64,
        task="perplexity",
        metric="perplexity",
        value=value,
        stderr=0.25,
        samples=1000,
        of=of,
        when="2026-01-01T00:00:00+00:00",
        settings={"limit": limit, "stride": 128},
        versions={"app": "0.1.0"},
    )


def committed(store: Store) -> list[CheckpointName]:
    return list(read_view_without_record(store).committed)


@pytest.fixture
def begun(folder: Store) -> Store:
    """A store with a run, as far as an evaluation looks at it."""
    folder.put(RECORD, [b"{}"])
    return folder


def test_what_was_written_is_read_back_by_step(begun: Store) -> None:
    later = CheckpointName(1_000, 2)
    key = write_evaluation(begun, later, [result(2.0, later)])
    write_evaluation(begun, NAME, [result()])
    read = evaluations_of(begun)
    assert read.found == [result(), result(2.0, later)]
    assert (list(read.damaged), read.left_out) == ([], 0)
    assert of_a_run(key)
    assert latest_values(read.found) == {
        ("perplexity", "builtin", "perplexity"): result(2.0, later)
    }


def test_the_same_evaluation_replaces_the_one_before_and_another_one_stands_beside_it(
    begun: Store,
) -> None:
    write_evaluation(begun, NAME, [result(2.5)])
    write_evaluation(begun, NAME, [result(2.25)])
    write_evaluation(begun, NAME, [result(3.0, limit=10)])
    write_evaluation(begun, NAME, [result(4.0, of="books")])
    assert sorted(one.value for one in evaluations_of(begun).found) == [2.25, 3.0, 4.0]


def test_nothing_is_written_where_the_run_is_gone(folder: Store) -> None:
    with pytest.raises(NotFound, match=r"the run is gone"):
        write_evaluation(folder, NAME, [result()])
    assert list(folder.list("")) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "JSON"),
        (json.dumps({"format_version": 99, "results": []}).encode(), "use the newer image"),
        (json.dumps({"format_version": 1, "results": []}).encode(), "results"),
        (b" " * (1 << 20), "bytes"),
    ],
    ids=["cut short", "newer", "empty", "too long"],
)
def test_a_damaged_file_is_named_and_the_others_are_read(
    content: bytes, says: str, begun: Store
) -> None:
    write_evaluation(begun, NAME, [result()])
    key = f"{EVALUATIONS}/{NAME}/other.json"
    begun.put(key, [content])
    read = evaluations_of(begun)
    assert read.found == [result()]
    ((where, why),) = read.damaged
    assert where == key and says in why


def test_a_result_of_another_checkpoint_is_damage(begun: Store) -> None:
    other = CheckpointName(40, 1)
    key = write_evaluation(begun, other, [result()])
    ((where, why),) = evaluations_of(begun).damaged
    assert where == key and "another checkpoint" in why


def test_of_too_many_files_those_of_the_newest_steps_are_read(begun: Store) -> None:
    for step in (5, 40, 10_000_000_000):
        name = CheckpointName(step, 1)
        write_evaluation(begun, name, [result(name=name)])
    read = evaluations_of(begun, most_files=2)
    assert [one.step for one in read.found] == [40, 10_000_000_000]
    assert read.left_out == 1


def test_results_outlive_their_checkpoint_and_are_no_checkpoints_themselves(begun: Store) -> None:
    names = [commit_step(begun, step) for step in (20, 40, 60)]
    for name in names:
        write_evaluation(begun, name, [result(name=name)])
    lease = FreeLease(begun)
    prune(begun, read_view_without_record(begun), 0, [], lease)
    assert committed(begun) == [names[2]]
    quarantine(begun, names[2], "flipped", lease)
    assert committed(begun) == []
    assert [one.step for one in evaluations_of(begun).found] == [20, 40, 60]
