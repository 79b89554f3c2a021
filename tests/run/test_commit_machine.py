"""The commit protocol as a state machine: commits and restarts that die anywhere, rot, zombies.

Hypothesis looks for an order of events after which the newest whole checkpoint is not the
one that is found, or is not what was written; or that costs a file of one that was set aside.
"""

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.errors import Damaged
from app.run.committing import commit
from app.run.fetching import fetch, newest_valid
from app.run.layout import MANIFEST, CheckpointName
from app.run.retention import clean_up, prune, quarantine
from app.run.view import read_view
from app.stores.contract import Data, Store
from app.stores.opening import open_store
from tests.support.mortal_store import Died, MortalStore
from tests.support.stored_run import FreeLease, go_on_from

KEEP_TOP = 1


class CommitMachine(RuleBasedStateMachine):
    """One run. `begun` is the step that the present attempt went on from."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="commit-machine-"))
        self.store = open_store(f"file://{self.folder}", "run")
        self.epoch, self.step, self.begun = 1, 0, 0
        self.written: dict[CheckpointName, bytes] = {}
        self.rotten: set[CheckpointName] = set()
        self.late: set[CheckpointName] = set()
        self.set_aside: set[CheckpointName] = set()
        self.newest: CheckpointName | None = None  # the newest one whose commit returned

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(loss=st.floats(0, 10), dies_at=st.integers(0, 28))
    def commits(self, loss: float, dies_at: int) -> None:
        """With `dies_at` 0 the process lives on."""
        name = CheckpointName(self.step + 1, self.epoch)
        store: Store = MortalStore(self.store, dies_at)  # type: ignore[assignment]
        content = self._files(name)
        try:
            commit(store, name, content, loss, FreeLease(store))
            self.step, self.newest = name.step, name
            prune(store, read_view(store), KEEP_TOP, [], FreeLease(store))
        except Died:
            self._restart()

    @rule(dies_at=st.integers(0, 40))
    def restarts(self, dies_at: int) -> None:
        try:
            self._restart(dies_at)
        except Died:
            self._restart()

    def _restart(self, dies_at: int = 0) -> None:
        store: Store = MortalStore(self.store, dies_at)  # type: ignore[assignment]
        lease = FreeLease(store)
        self.epoch += 1
        view = read_view(self.store)
        self.set_aside |= set(view.late)
        clean_up(store, view, self.epoch, lease)
        whole = [name for name in self._committed() if name not in self.rotten | self.late]
        try:
            found = newest_valid(self.store, read_view(self.store), self.folder / "scratch")
        except Damaged:
            assert not whole, "a whole checkpoint was there and was not found"
            self._begin_anew()
            return
        if found is None:
            assert self.newest is None, "a committed checkpoint is gone"
            step = 0
        else:
            assert found.name == max(whole)
            assert (found.directory / "model.safetensors").read_bytes() == self.written[found.name]
            self.set_aside |= {name for name, _ in found.damaged}
            for name, reason in found.damaged:
                assert name in self.rotten
                quarantine(store, name, reason, lease)
            if self.newest is not None and self.newest not in self.rotten:
                assert found.name >= self.newest, "a committed step is lost"
            self.newest, step = found.name, found.name.step
        self.step = self.begun = step
        go_on_from(self.store, step, self.epoch)
        for name in self.set_aside:
            kept = [info.key.rsplit("/", 1)[1] for info in self.store.list(f"quarantine/{name}")]
            assert set(kept) == {*self._files(name), MANIFEST, "reason.json"}

    @precondition(lambda self: self._committed())
    @rule(data=st.data())
    def rots(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self._committed()))
        file = data.draw(st.sampled_from(["model.safetensors", "state.json"]))
        path = self.folder / "run" / name.key(file)
        content = path.read_bytes()
        if name not in self.rotten:  # a second flip could heal the first
            path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
            self.rotten.add(name)

    @precondition(lambda self: self.epoch > 1)
    @rule(ahead=st.integers(1, 5))
    def a_zombie_commits(self, ahead: int) -> None:
        """A process of an earlier epoch, paused after its last look at the lease."""
        name = CheckpointName(self.begun + ahead, self.epoch - 1)
        if name not in self.written:
            commit(self.store, name, self._files(name), 0.0, FreeLease(self.store))
            self.late.add(name)

    @invariant()
    def what_is_newest_and_whole_verifies(self) -> None:
        if self.newest is not None and self.newest not in self.rotten:
            fetch(self.store, self.newest, self.folder / "scratch")

    def _files(self, name: CheckpointName) -> dict[str, Data]:
        self.written[name] = f"weights of {name}".encode()
        return {"model.safetensors": [self.written[name]], "state.json": [b"{}"]}

    def _committed(self) -> list[CheckpointName]:
        return [stored.name for stored in read_view(self.store).checkpoints if stored.committed]

    def _begin_anew(self) -> None:
        """Do as a person would, who chooses another RUN_NAME."""
        shutil.rmtree(self.folder / "run")
        self.rotten, self.late, self.set_aside, self.newest = set(), set(), set(), None
        self.epoch, self.step, self.begun = 1, 0, 0
        self.written = {}


TestCommitMachine = CommitMachine.TestCase
TestCommitMachine.settings = settings(
    max_examples=100,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
