"""One writer per run: who gets the lease, who waits, and who has to stop."""

import json
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.errors import AppError, Damaged, Fenced, Preempted, Unavailable
from app.run.clock import Clock
from app.run.layout import HIGHEST_EPOCH, LEASE
from app.run.lease import Lease, LeaseRecord, holder_identity
from app.run.view import read_view
from app.stores.contract import ExclusiveLock, Store
from app.stores.opening import open_store
from app.stores.swap import SWAP_PAUSES
from tests.support.fake_time import FakeTime
from tests.support.stored_run import commit_step

TTL = 30.0
ROOT = Path(__file__).parents[2]


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


def new_lease(store: Store, holder: str, time: FakeTime, ttl: float = TTL) -> Lease:
    return Lease(store, ttl, holder, time.clock)


def acquired(store: Store, holder: str, time: FakeTime, wait: float = 120, above: int = 0) -> Lease:
    lease = new_lease(store, holder, time)
    lease.acquire(wait, lambda line: None, lambda: False, above)
    return lease


def stored(store: Store) -> LeaseRecord:
    return LeaseRecord.model_validate_json(store.get(LEASE)[0])


class RemoteView:
    """The same store seen from another machine: its kernel knows nothing of our locks."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def exclusive_lock(self) -> ExclusiveLock | None:
        return None

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


@pytest.fixture
def remote(store: Store) -> Store:
    view: Store = RemoteView(store)  # type: ignore[assignment]
    return view


class RefusesSwaps(RemoteView):
    """A store that answers each conditional write to `key` as if another were faster."""

    def __init__(self, store: Store, key: str) -> None:
        super().__init__(store)
        self._key, self.refused = key, 0

    def put_if_absent(self, key: str, content: bytes) -> str | None:
        self.refused += key == self._key
        return None if key == self._key else self._store.put_if_absent(key, content)

    def put_if_match(self, key: str, content: bytes, etag: str) -> str | None:
        self.refused += key == self._key
        return None if key == self._key else self._store.put_if_match(key, content, etag)


def test_a_lease_that_can_never_be_taken_is_given_up(store: Store, time: FakeTime) -> None:
    view = RefusesSwaps(store, LEASE)
    with pytest.raises(Unavailable, match="refused 30 writes in a row"):
        acquired(view, "a", time)  # type: ignore[arg-type]
    assert view.refused == 30
    assert 29 <= time.now - 1000 <= 31


def test_a_shared_object_that_can_never_be_written_is_given_up(
    store: Store, time: FakeTime
) -> None:
    view = RefusesSwaps(store, "LATEST")
    lease = acquired(view, "a", time)  # type: ignore[arg-type]
    before = time.now
    with pytest.raises(Unavailable, match="/LATEST: the store refused 8 writes in a row"):
        lease.put("LATEST", b"step-0000000001-e000001")
    assert view.refused == 8
    assert time.now - before == pytest.approx(sum(SWAP_PAUSES))


def test_the_first_holder_has_epoch_one_and_nobody_waits(store: Store, time: FakeTime) -> None:
    lease = acquired(store, "a", time)
    assert (lease.epoch, lease.lost, lease.protected) == (1, False, store.conditional_writes)
    assert (stored(store).holder, stored(store).epoch) == ("a", 1)
    lease.check()
    assert time.now == 1000
    lease.release()


def test_a_released_lease_is_taken_at_once_with_the_next_epoch(
    store: Store, time: FakeTime
) -> None:
    for epoch in (1, 2, 3):
        lease = acquired(store, f"holder {epoch}", time)
        assert lease.epoch == epoch
        lease.release()
        assert stored(store).released
    assert time.now == 1000


def test_a_silent_holder_is_taken_over_after_its_time_to_live(
    remote: Store, time: FakeTime
) -> None:
    acquired(remote, "dead", time)
    lines: list[str] = []
    successor = new_lease(remote, "successor", time)
    successor.acquire(120, lines.append, lambda: False)
    assert successor.epoch == 2
    assert TTL <= time.now - 1000 <= TTL + 2
    assert len(lines) == 2
    assert "dead" in lines[0]
    assert "silent for 30 s" in lines[1]


def test_a_dead_holder_is_told_from_a_live_one_even_without_lease_wait(
    remote: Store, time: FakeTime
) -> None:
    acquired(remote, "dead", time)
    assert acquired(remote, "successor", time, wait=0).epoch == 2


@pytest.mark.parametrize("wait", [0.0, 120.0])
def test_a_live_holder_is_waited_for_and_then_named(
    remote: Store, time: FakeTime, wait: float
) -> None:
    holder = acquired(remote, "alive:7", time)
    time.every(TTL / 3, holder.renew, until=300)
    with pytest.raises(Unavailable, match=r"alive:7.*LEASE_WAIT"):
        acquired(remote, "second", time, wait)
    assert wait <= time.now - 1000 <= wait + TTL / 3 + 1
    holder.check()


def test_a_holder_that_ends_while_it_is_waited_for_makes_room(
    remote: Store, time: FakeTime
) -> None:
    holder = acquired(remote, "ending", time)
    time.every(TTL / 3, holder.renew, until=45)
    time.events.append((1050, holder.release))
    assert acquired(remote, "second", time).epoch == 2
    assert 50 <= time.now - 1000 <= 52


def test_the_clocks_of_two_machines_need_not_agree(remote: Store, time: FakeTime) -> None:
    ahead = Clock(lambda: time.now, time.sleep, lambda: time.now - 1e6)
    holder = Lease(remote, TTL, "in the past", ahead)
    holder.acquire(0, lambda line: None, lambda: False)
    time.every(TTL / 3, holder.renew, until=300)
    with pytest.raises(Unavailable):
        acquired(remote, "second", time, wait=60)


def test_a_holder_is_judged_by_its_own_time_to_live(remote: Store, time: FakeTime) -> None:
    slow = new_lease(remote, "slow", time, ttl=300)
    slow.acquire(0, lambda line: None, lambda: False)
    time.every(100, slow.renew, until=700)
    with pytest.raises(Unavailable, match="slow"):
        acquired(remote, "second", time, wait=120)


class SlowAnswers(RemoteView):
    """Every `get` takes longer than the time to live to reach the store."""

    def __init__(self, store: Store, time: FakeTime) -> None:
        super().__init__(store)
        self._time = time

    def get(self, key: str) -> tuple[bytes, str]:
        self._time.sleep(TTL + 1)
        return self._store.get(key)


def test_slow_answers_do_not_make_a_holder_look_dead(remote: Store, time: FakeTime) -> None:
    holder = acquired(remote, "alive", time)
    time.every(TTL / 3, holder.renew, until=600)
    with pytest.raises(Unavailable, match="alive"):
        acquired(SlowAnswers(remote, time), "second", time)  # type: ignore[arg-type]
    holder.check()


def test_who_lost_the_lease_is_told_at_the_next_check(remote: Store, time: FakeTime) -> None:
    paused = acquired(remote, "paused", time)
    successor = acquired(remote, "successor:9", time)
    with pytest.raises(Fenced, match=r"successor:9 \(epoch 2, ours was 1\)"):
        paused.check()
    assert paused.lost
    successor.check()


def test_who_lost_the_lease_notices_at_the_next_renewal_and_changes_nothing(
    remote: Store, time: FakeTime
) -> None:
    paused = acquired(remote, "paused", time)
    acquired(remote, "successor", time)
    before = remote.get(LEASE)
    paused.renew()
    assert paused.lost
    paused.release()
    assert remote.get(LEASE) == before


def test_a_deleted_lease_stops_its_holder(store: Store, time: FakeTime) -> None:
    lease = acquired(store, "a", time)
    store.delete([LEASE])
    with pytest.raises(Fenced, match="deleted"):
        lease.check()
    lease.release()
    assert [info.key for info in store.list("")] == []


def test_a_shared_object_is_replaced_by_its_holder(store: Store, time: FakeTime) -> None:
    store.put("LATEST", [b"before"])
    lease = acquired(store, "a", time)
    for content in (b"one", b"two"):
        lease.put("LATEST", content)
        lease.put("log", content)
    assert store.get("LATEST")[0] == store.get("log")[0] == b"two"


def test_who_lost_the_lease_after_its_last_look_cannot_replace_a_shared_object(
    remote: Store, time: FakeTime
) -> None:
    zombie = acquired(remote, "zombie", time)
    zombie.put("log", b"zombie's")
    time.sleep(TTL)
    successor = acquired(remote, "successor", time)
    successor.put("log", b"successor's")
    with pytest.raises(Fenced, match="taken over by successor"):
        zombie.put("log", b"zombie's again")
    assert remote.get("log")[0] == b"successor's"


def test_a_zombies_last_write_does_not_stop_its_successor(remote: Store, time: FakeTime) -> None:
    zombie = acquired(remote, "zombie", time)
    zombie.put("log", b"zombie's")
    time.sleep(TTL)
    successor = acquired(remote, "successor", time)
    successor.put("log", b"successor's")
    remote.put("log", [b"written between the look and the lease"])
    successor.put("log", b"successor's again")
    assert remote.get("log")[0] == b"successor's again"


def test_epochs_go_on_growing_where_the_record_was_deleted(store: Store, time: FakeTime) -> None:
    acquired(store, "a", time).release()
    store.delete([LEASE])
    lease = new_lease(store, "b", time)
    lease.acquire(120, lambda line: None, lambda: False, above=7)
    assert (lease.epoch, stored(store).epoch) == (8, 8)


def test_one_of_many_that_start_together_gets_the_lease(remote: Store) -> None:
    if not remote.conditional_writes:
        pytest.skip("this server ignores conditions: nothing keeps two writers apart")

    def start(number: int) -> Lease | None:
        time = FakeTime()
        lease = new_lease(remote, f"holder {number}", time)
        try:
            lease.acquire(0, lambda line: None, lambda: time.now > 1000)
        except Preempted:
            return None
        return lease

    with ThreadPoolExecutor(8) as pool:
        winners = [lease for lease in pool.map(start, range(8)) if lease]
    assert [lease.epoch for lease in winners] == [1]
    winners[0].check()


def test_waiting_ends_when_the_process_is_asked_to_stop(remote: Store, time: FakeTime) -> None:
    acquired(remote, "other", time)
    with pytest.raises(Preempted):
        new_lease(remote, "second", time).acquire(120, lambda line: None, lambda: time.now >= 1010)
    assert stored(remote).holder == "other"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"holder": "a"}',
        b"\xff\xfe",
        b'{"holder": "", "epoch": 1}',
        b" " * (17 << 20),
        *[
            json.dumps(
                {"holder": "a", "epoch": 1, "renewal": 1, "ttl": 5, "expires_at": 1} | wrong
            ).encode()
            for wrong in (
                {"epoch": 10**12},
                {"epoch": True},
                {"ttl": float("nan")},
                {"expires_at": 10**400},
                {"renewal": 10**30},
                {"holder": "a" * 10**5},
            )
        ],
    ],
    ids=lambda content: repr(content[:80]),
)
def test_a_damaged_record_is_reported_with_what_to_do(
    tmp_path: Path, time: FakeTime, content: bytes
) -> None:
    store = open_store(f"file://{tmp_path}", "run")
    store.put(LEASE, [content])
    with pytest.raises(Damaged, match=r"lease\.json is damaged.*delete that file"):
        acquired(store, "a", time)
    assert (tmp_path / "run" / LEASE).read_bytes() == content


def test_after_epoch_999999_the_run_goes_on_and_its_saves_are_seen(
    tmp_path: Path, time: FakeTime
) -> None:
    store = open_store(f"file://{tmp_path}", "run")
    commit_step(store, 20, epoch=999_999)
    lease = acquired(store, "a", time, above=read_view(store).highest_epoch)
    assert lease.epoch == 1_000_000
    newest = commit_step(store, 40, epoch=lease.epoch)
    assert read_view(store).committed[0] == newest
    assert read_view(store).highest_epoch == lease.epoch


def test_beyond_the_last_epoch_that_a_name_can_hold_nothing_is_begun(
    tmp_path: Path, time: FakeTime
) -> None:
    store = open_store(f"file://{tmp_path}", "run")
    with pytest.raises(Damaged, match="no name can hold a higher one"):
        acquired(store, "a", time, above=HIGHEST_EPOCH)


class LostAnswers(RemoteView):
    """Conditional writes arrive, and their answers are lost while `losing` is set."""

    losing = False

    def put_if_absent(self, key: str, content: bytes) -> str | None:
        return self._answer(self._store.put_if_absent(key, content))

    def put_if_match(self, key: str, content: bytes, etag: str) -> str | None:
        return self._answer(self._store.put_if_match(key, content, etag))

    def _answer(self, etag: str | None) -> str | None:
        if self.losing:
            raise Unavailable("the answer was lost")
        return etag


def test_a_renewal_whose_answer_was_lost_does_not_lose_the_lease(
    store: Store, time: FakeTime
) -> None:
    view = LostAnswers(store)
    lease = acquired(view, "a", time)  # type: ignore[arg-type]
    view.losing = True
    with pytest.raises(Unavailable):
        lease.renew()
    view.losing = False
    lease.renew()
    lease.renew()
    assert not lease.lost
    lease.check()
    lease.release()
    assert stored(store).released


def test_a_start_whose_answer_was_lost_can_be_repeated(store: Store, time: FakeTime) -> None:
    view = LostAnswers(store)
    view.losing = True
    lease = new_lease(view, "a", time)  # type: ignore[arg-type]
    with pytest.raises(Unavailable):
        lease.acquire(0, lambda line: None, lambda: False)
    view.losing = False
    lease.acquire(0, lambda line: None, lambda: False)
    assert lease.epoch == 1
    lease.check()


class CountedRenewals(RemoteView):
    """Sets `renewed` once a renewal has arrived. The first one fails."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.calls = 0
        self.renewed = threading.Event()

    def put_if_match(self, key: str, content: bytes, etag: str) -> str | None:
        self.calls += 1
        if self.calls == 1:
            raise Unavailable("not now")
        answer = self._store.put_if_match(key, content, etag)
        self.renewed.set()
        return answer


def test_the_thread_goes_on_renewing_after_a_failure(store: Store) -> None:
    view = CountedRenewals(store)
    lease = Lease(view, 0.06, "a")  # type: ignore[arg-type]
    lease.acquire(0, lambda line: None, lambda: False)
    lease.start_renewing()
    assert view.renewed.wait(60)
    lease.release()
    assert stored(store).released
    assert stored(store).renewal >= 1
    assert not lease.lost


def test_releasing_a_lease_that_cannot_be_reached_is_no_error(store: Store, time: FakeTime) -> None:
    view = LostAnswers(store)
    lease = acquired(view, "a", time)  # type: ignore[arg-type]
    view.losing = True
    lease.release()


def test_a_store_without_conditional_writes_is_not_protected(
    tmp_path: Path, time: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"file://{tmp_path}", "run")
    monkeypatch.setattr(type(store), "conditional_writes", False)
    lease = acquired(store, "a", time)
    assert not lease.protected
    lease.check()


_HOLD = """
import sys
from app.run.lease import Lease
from app.stores.opening import open_store
lease = Lease(open_store(sys.argv[1], "run"), 3600, "killed:1")
lease.acquire(0, print, lambda: False)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_holder_that_was_killed_on_this_machine_is_not_waited_for(
    tmp_path: Path, time: FakeTime
) -> None:
    uri = f"file://{tmp_path}"
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, uri],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    store = open_store(uri, "run")
    with pytest.raises(Preempted):
        new_lease(store, "too early", time).acquire(0, lambda line: None, lambda: time.now > 1100)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    before = time.now
    lines: list[str] = []
    successor = new_lease(store, "successor", time)
    successor.acquire(0, lines.append, lambda: False)
    assert successor.epoch == 2
    assert time.now == before
    assert lines == [
        "taking over from killed:1, which ended on this machine without giving the lease back"
    ]
    successor.release()


def test_a_free_kernel_lock_proves_nothing_about_another_machine(
    tmp_path: Path, time: FakeTime
) -> None:
    store = open_store(f"file://{tmp_path}", "run")
    acquired(store, "elsewhere", time).release()
    record = stored(store).model_copy(update={"released": False, "lock_scope": "other-kernel/1"})
    store.put(LEASE, [json.dumps(record.model_dump()).encode()])
    acquired(store, "second", time).release()
    assert time.now - 1000 >= TTL


def test_a_holder_without_a_kernel_lock_is_not_taken_for_dead(
    tmp_path: Path, time: FakeTime
) -> None:
    store = open_store(f"file://{tmp_path}", "run")
    remote: Store = RemoteView(store)  # type: ignore[assignment]
    holder = acquired(remote, "without lock", time)
    time.every(TTL / 3, holder.renew, until=300)
    with pytest.raises(Unavailable, match="without lock"):
        acquired(store, "second", time, wait=10)
    lock = store.exclusive_lock()
    assert lock is not None
    lock.release()


def test_a_lease_that_was_not_acquired_cannot_be_renewed(tmp_path: Path, time: FakeTime) -> None:
    lease = new_lease(open_store(f"file://{tmp_path}", "run"), "a", time)
    with pytest.raises(AppError, match="before it was acquired"):
        lease.renew()


def test_no_two_identities_are_alike() -> None:
    assert len({holder_identity() for _ in range(50)}) == 50
