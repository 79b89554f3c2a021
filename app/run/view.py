"""What lies in the store under one run at one moment, and what each checkpoint is.

Everything that is decided about a run is decided from a `RunView`: what is resumed, what is
refused, what is cleaned up, what a listing shows. Only who changes the store looks at the lease
again before each change.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from app.errors import NotFound
from app.run.checkpoints import read_latest
from app.run.fence import Fences
from app.run.layout import (
    ATTEMPTS,
    CHECKPOINTS,
    MANIFEST,
    QUARANTINE,
    AttemptName,
    CheckpointName,
    file_of,
)
from app.run.record import StoredRecord, load_record
from app.stores.contract import ReadableStore


class CheckpointState(Enum):
    """What the folder of a checkpoint is. Its value is the word for it in listings."""

    COMMITTED = "committed"
    LATE = "late: not part of the run"  # its writer had lost the run: see `app.run.fence`
    UNFINISHED = "unfinished upload"
    LOST_MANIFEST = "damaged: its manifest is missing"  # LATEST names it: it was whole once
    LEAVING = "on its way to quarantine"  # the move was cut short


@dataclass(frozen=True)
class StoredCheckpoint:
    """The folder of a checkpoint as a listing shows it; `size` is that of its files in bytes."""

    name: CheckpointName
    size: int
    state: CheckpointState

    @property
    def committed(self) -> bool:
        """Whether it is a checkpoint of the run."""
        return self.state is CheckpointState.COMMITTED


@dataclass(frozen=True)
class RunView:
    """A run as it was read. `checkpoints` are newest first, `attempts` are oldest first.

    `quarantined` are the names of the folders in quarantine. `objects` are all objects of the run,
    with their sizes in bytes.
    """

    uri: str
    record: StoredRecord | None
    latest: str | None
    checkpoints: Sequence[StoredCheckpoint]
    attempts: Sequence[AttemptName]
    quarantined: frozenset[str]
    objects: Mapping[str, int]

    def of_state(self, state: CheckpointState) -> list[CheckpointName]:
        """Newest first."""
        return [stored.name for stored in self.checkpoints if stored.state is state]

    @cached_property
    def committed(self) -> Sequence[CheckpointName]:
        """The checkpoints of the run, newest first."""
        return self.of_state(CheckpointState.COMMITTED)

    @property
    def late(self) -> Sequence[CheckpointName]:
        return self.of_state(CheckpointState.LATE)

    @property
    def without_manifest(self) -> Sequence[CheckpointName]:
        whole = (CheckpointState.COMMITTED, CheckpointState.LATE)
        return [stored.name for stored in self.checkpoints if stored.state not in whole]

    @property
    def newest_step(self) -> int:
        """The step of the newest checkpoint; 0 if there is none."""
        return self.committed[0].step if self.committed else 0

    @property
    def highest_epoch(self) -> int:
        """The highest epoch of all attempts that left something behind; 0 if none did."""
        named = [stored.name.epoch for stored in self.checkpoints]
        return max([*named, *(attempt.epoch for attempt in self.attempts)], default=0)

    def newest_attempts(self, count: int) -> Sequence[AttemptName]:
        """The last `count` of them, oldest first."""
        return self.attempts[max(0, len(self.attempts) - count) :]

    def find(self, text: str) -> CheckpointName:
        """The committed checkpoint that `text` names: step-…-e…, a step number, or latest."""
        if not self.committed:
            raise NotFound(f"{self.uri} holds no checkpoint yet")
        if text == "latest":
            return self.committed[0]
        for name in self.committed:
            if text in (str(name), str(name.step)):
                return name
        known = ", ".join(str(name.step) for name in self.committed)
        raise NotFound(f"{self.uri} holds no checkpoint {text!r}; there are steps {known}")


def read_view(
    store: ReadableStore,
    record_of: Callable[[ReadableStore], StoredRecord | None] = load_record,
    latest_of: Callable[[ReadableStore], str | None] = read_latest,
) -> RunView:
    """Read the run with one listing. `record_of` reads run.json, `latest_of` LATEST.

    Raises Damaged for an unreadable run.json, IncompatibleRun for one of a newer format, and the
    store's errors.
    """
    # Another process may be writing. What LATEST names was there before LATEST, and the record was
    # there before anything but the lease: so LATEST is read first, and the record last.
    latest = latest_of(store)
    sizes = {info.key: info.size for info in store.list("")}
    record = record_of(store)
    named = (AttemptName.parse(file_of(key)) for key in sizes if key.startswith(f"{ATTEMPTS}/"))
    attempts = sorted(filter(None, named), key=lambda attempt: (attempt.epoch, attempt.start_step))
    quarantined = frozenset(key.split("/")[1] for key in sizes if key.startswith(f"{QUARANTINE}/"))
    folders: dict[CheckpointName, dict[str, int]] = {}
    for key, size in sizes.items():
        place, _, rest = key.partition("/")
        folder, _, file = rest.partition("/")
        name = CheckpointName.parse(folder) if place == CHECKPOINTS else None
        if name is not None and file and "/" not in file:
            folders.setdefault(name, {})[file] = size
    fences = Fences(attempts)

    def state(name: CheckpointName) -> CheckpointState:
        if MANIFEST in folders[name]:
            return CheckpointState.LATE if fences.late(name) else CheckpointState.COMMITTED
        if str(name) in quarantined:
            return CheckpointState.LEAVING
        lost = str(name) == latest
        return CheckpointState.LOST_MANIFEST if lost else CheckpointState.UNFINISHED

    return RunView(
        uri=store.uri,
        record=record,
        latest=latest,
        checkpoints=[
            StoredCheckpoint(name, sum(folders[name].values()), state(name))
            for name in sorted(folders, reverse=True)
        ],
        attempts=attempts,
        quarantined=quarantined,
        objects=sizes,
    )


def read_view_without_record(store: ReadableStore) -> RunView:
    """As `read_view`, for a run whose run.json may be damaged or missing: it is not read."""
    return read_view(store, lambda _: None)
