"""Where nodes meet: who is waited for, what has to agree, and how all hear why it is over."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import timedelta

import pytest
from torch._C._distributed_c10d import HashStore
from torch.distributed.distributed_c10d import Store

from app.errors import AppError, ConfigError, LostPeer, Preempted
from app.ranks.meeting import (
    Arrival,
    Assembly,
    Meeting,
    MeetingLimits,
    NodeEnded,
    NotThisMeeting,
    answer_within,
)

QUICK = MeetingLimits(patience=0.6, answer=5, poll=0.01, farewell=5)
PATIENT = MeetingLimits(patience=60, answer=5, poll=0.01, farewell=5)


@pytest.fixture
def store() -> Iterator[Store]:
    """Its end is the end of the meeting: no node that a test has left behind waits any longer, and
    shows that this process is alive."""
    store = HashStore()
    store.set_timeout(timedelta(seconds=5))
    yield store
    Meeting(store, 0, 1, QUICK).end(75, [])


def arrival(node: int, processes: int = 1, **agreed: str) -> Arrival:
    return Arrival(node=node, processes=processes, agreed=agreed, folders={"tokens": f"/{node}"})


def sees_it(word: str) -> str:
    return ""


def in_background(act: Callable[[], Assembly]) -> Future[Assembly]:
    """In a thread that ends with the tests, since some wait for what never comes."""
    ended = Future[Assembly]()

    def run() -> None:
        try:
            ended.set_result(act())
        except Exception as error:  # noqa: BLE001 - raised by `result`
            ended.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return ended


def came(
    store: Store,
    node: int,
    nodes: int,
    processes: int = 1,
    sees: Callable[[str], str] = sees_it,
    **agreed: str,
) -> Future[Assembly]:
    meeting = Meeting(store, node, nodes, PATIENT)
    meeting.show_presence()
    return in_background(lambda: meeting.arrive(arrival(node, processes, **agreed), sees))


def hosted(store: Store, nodes: int, limits: MeetingLimits = PATIENT) -> Meeting:
    return Meeting(store, 0, nodes, limits)


def test_each_node_hears_which_ranks_are_its_own(store: Store) -> None:
    words: list[str] = []

    def note(word: str) -> str:
        words.append(word)
        return ""

    others = [came(store, 1, 3, 4, note), came(store, 2, 3, 2)]
    assembly = hosted(store, 3).assemble(arrival(0, 8), words.append)
    assert [assembly.first_rank(node) for node in range(3)] == [0, 8, 12]
    assert assembly.world_size == 14
    assert [other.result(30) for other in others] == [assembly, assembly]
    assert len(words) == 2 and len(set(words)) == 1, "what node 0 writes, and what a node looks for"


def test_a_node_that_does_not_come_is_named_with_those_that_did(store: Store) -> None:
    came(store, 1, 4)
    with pytest.raises(LostPeer, match=r"nodes 2 and 3 of 4 did not come .*; nodes 0 and 1 did"):
        hosted(store, 4, QUICK).assemble(arrival(0), lambda _: None)


def test_a_node_that_shows_that_it_lives_is_waited_for(store: Store) -> None:
    """It prepares for longer than a silent one is waited for."""
    meeting = Meeting(store, 1, 2, QUICK)
    meeting.show_presence()
    prepared = threading.Event()
    timer = threading.Timer(4 * QUICK.patience, prepared.set)
    timer.start()

    def prepare_and_arrive() -> Assembly:
        prepared.wait(30)
        return meeting.arrive(arrival(1), sees_it)

    other = in_background(prepare_and_arrive)
    assert hosted(store, 2, QUICK).assemble(arrival(0), lambda _: None) == other.result(30)


def test_what_differs_is_refused_with_both_values_and_all_hear_it(store: Store) -> None:
    other = came(store, 1, 2, SEED="2", MODEL="tiny")
    meeting = hosted(store, 2)
    with pytest.raises(ConfigError, match="SEED is 2 on node 1, but 1 on node 0") as refused:
        meeting.assemble(arrival(0, SEED="1", MODEL="tiny"), lambda _: None)
    assert len(refused.value.args) == 1
    meeting.end(refused.value.exit_code, refused.value.args)
    with pytest.raises(NodeEnded, match="node 0 has ended: SEED is 2 on node 1") as ended:
        other.result(30)
    assert ended.value.exit_code == 78


def test_a_node_that_does_not_see_the_store_is_refused_by_its_number(store: Store) -> None:
    came(store, 1, 2, sees=lambda _: "another folder")
    with pytest.raises(ConfigError, match="node 1: another folder"):
        hosted(store, 2).assemble(arrival(0), lambda _: None)


@pytest.mark.parametrize(
    ("code", "error"), [(0, NodeEnded), (75, NodeEnded), (143, Preempted)], ids=str
)
def test_the_code_that_node_0_ends_with_is_that_of_all(
    code: int, error: type[AppError], store: Store
) -> None:
    other = came(store, 1, 2)
    hosted(store, 2).end(code, ["a reason"])
    with pytest.raises(error, match="node 0 has ended: a reason") as ended:
        other.result(30)
    assert ended.value.exit_code == code


def test_a_node_that_is_started_again_before_all_are_there_is_taken_as_it_is_now(
    store: Store,
) -> None:
    first = Meeting(store, 1, 2, PATIENT)
    first.show_presence()
    gone = in_background(lambda: first.arrive(arrival(1, 1), sees_it))
    again: list[Future[Assembly]] = []

    def begin_again(word: str) -> None:
        """While node 0 writes its word, when the first start has arrived already."""
        again.append(came(store, 1, 2, 3))
        while b'"processes":3' not in store.get("arrival/1"):
            pass

    assembly = hosted(store, 2).assemble(arrival(0), begin_again)
    assert assembly.world_size == 4
    assert again[0].result(30) == assembly
    with pytest.raises(NotThisMeeting):
        gone.result(30)


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        (143, Preempted, "node 1 was asked to stop"),
        (78, LostPeer, "node 1 has ended with exit 78"),
        (75, LostPeer, "node 1 of 2 did not come"),  # it is started again, and waited for
    ],
)
def test_a_node_that_leaves_is_not_waited_for_unless_it_will_come_again(
    code: int, error: type[AppError], text: str, store: Store
) -> None:
    Meeting(store, 1, 2, PATIENT).leave(code)
    with pytest.raises(error, match=text):
        hosted(store, 2, QUICK).assemble(arrival(0), lambda _: None)


def test_the_store_of_an_attempt_that_is_ending_is_not_joined(store: Store) -> None:
    came(store, 1, 2)
    hosted(store, 2).assemble(arrival(0), lambda _: None)
    again = Meeting(store, 1, 2, PATIENT)
    with pytest.raises(NotThisMeeting):
        again.show_presence()
    with pytest.raises(NotThisMeeting):
        again.arrive(arrival(1), sees_it)


def test_a_store_that_does_not_answer_is_not_waited_for() -> None:
    silent = threading.Event()
    with pytest.raises(TimeoutError):
        answer_within(0.05, lambda: silent.wait(30))
    silent.set()
