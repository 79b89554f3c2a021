"""Whether every byte of the checkpoints of a run is what was written, and no checkpoint is missing.

Finds what a start of the job would call damaged, and also damage to older checkpoints, which a
start does not read.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from app.errors import Damaged, NotFound
from app.run.checkpoints import StoredCheckpoint, read_latest, stored_checkpoints
from app.run.fence import fences
from app.run.fetching import Expectation, check_expected, fetch
from app.run.layout import ATTEMPTS, LATEST, MANIFEST, RECORD, CheckpointName
from app.run.record import load_record
from app.run.retention import in_quarantine
from app.state.identity import RunRecord
from app.stores.contract import Store

_WHOLE = "ok"


@dataclass(frozen=True)
class Finding:
    """What was found out about one checkpoint, or about the run."""

    name: str
    text: str
    damaged: bool = False

    @property
    def whole(self) -> bool:
        return self.text == _WHOLE


@dataclass(frozen=True)
class Verification:
    """`scratch` makes a folder for one download.

    A checkpoint that lacks one of the `required` files, or is not the `expected` one, counts as
    damaged.
    """

    store: Store
    scratch: Callable[[], AbstractContextManager[Path]]
    required: Sequence[str]
    expected: Expectation | None = None

    def whole_run(self) -> Iterator[Finding]:
        """A finding on each checkpoint, newest first, and then on what is missing altogether."""
        # LATEST is read before the listing: the checkpoint that it names is there by then.
        latest = read_latest(self.store)
        found: list[Finding] = []
        for checkpoint in stored_checkpoints(self.store):
            found.append(self._of(checkpoint, latest))
            yield found[-1]
        if latest is not None and self._vanished(latest, found):
            yield _damage(latest, f"{LATEST} names it, and it is not there")
        elif not any(finding.damaged or finding.whole for finding in found):
            stored = load_record(self.store)
            if stored and (proof := proof_of_checkpoints(stored.record, self.store)):
                yield _damage(RECORD, f"{proof}, but no checkpoint is left")

    def _of(self, checkpoint: StoredCheckpoint, latest: str | None) -> Finding:
        name = checkpoint.name
        if not checkpoint.has_manifest:
            # LATEST is read again: a running job may have committed the next checkpoint in the
            # meantime, and may be pruning this one.
            if checkpoint.lost_manifest(latest) and read_latest(self.store) == latest:
                return _damage(str(name), f"{name.key(MANIFEST)} is missing")
            return Finding(str(name), "unfinished upload")
        if checkpoint.late:
            return Finding(str(name), "late: not part of the run")
        return self.one(name)

    def one(self, name: CheckpointName) -> Finding:
        """The finding on a committed checkpoint, after reading all its bytes."""
        try:
            with self.scratch() as folder:
                path = fetch(
                    self.store, name, folder, required=self.required, expected=self.expected
                )
                check_expected(name, path, self.expected)
        except (Damaged, NotFound) as error:
            left = [info.key for info in self.store.list(name.key())]
            if name.key(MANIFEST) not in left:  # pruning deletes the manifest first
                return Finding(str(name), "removed just now")
            return _damage(str(name), str(error))
        return Finding(str(name), _WHOLE)

    def _vanished(self, latest: str, found: Sequence[Finding]) -> bool:
        if latest in [finding.name for finding in found] or read_latest(self.store) != latest:
            return False
        # A start may have set the checkpoint aside and not committed since. Earlier versions wrote
        # the time behind the name of the folder.
        aside = in_quarantine(self.store)
        return not any(f"{folder}-".startswith(f"{latest}-") for folder in aside)


def proof_of_checkpoints(record: RunRecord, store: Store) -> str | None:
    """What in the store shows that there was a checkpoint once; None if nothing does."""
    late = [str(stored.name) for stored in stored_checkpoints(store) if stored.late]
    latest = read_latest(store)
    if latest is not None and latest not in late:
        return f"{LATEST} names {latest}"
    if record.extensions:
        return f"{RECORD} has an extension from step {record.extensions[0].base}"
    if (begun := max((step for _, step in fences(store).starts), default=0)) > 0:
        return f"{ATTEMPTS} has one that went on from step {begun}"
    return None


def _damage(name: str, what: str) -> Finding:
    return Finding(name, f"DAMAGED: {what}", damaged=True)
