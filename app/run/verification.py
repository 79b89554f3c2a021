"""Whether every byte of the checkpoints of a run is what was written, and no checkpoint is missing.

Finds what a start of the job would call damaged, and also damage to older checkpoints, which a
start does not read.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from app.console import counted
from app.errors import Damaged, NotFound, Unserved
from app.run.checkpoints import read_latest
from app.run.fetching import PAUSES, Expectation, check_expected, fetch
from app.run.journal import read_attempts
from app.run.layout import (
    ATTEMPTS,
    LATEST,
    MANIFEST,
    METRICS_KEY,
    QUARANTINE,
    RECORD,
    CheckpointName,
)
from app.run.view import CheckpointState, RunView, StoredCheckpoint, read_view
from app.stores.contract import Store

_WHOLE = "ok"
_MOST_METRICS = 1 << 30  # bytes


@dataclass(frozen=True)
class Finding:
    """What was found out about one checkpoint, or about the run.

    `unserved` says that the store failed at one of its objects again and again.
    """

    name: str
    text: str
    damaged: bool = False
    unserved: bool = False

    @property
    def whole(self) -> bool:
        return self.text == _WHOLE


@dataclass(frozen=True)
class Verification:
    """`scratch` makes a folder for one download.

    A checkpoint that lacks one of the `required` files, or is not the `expected` one, counts as
    damaged. `pauses` are as in `fetch`.
    """

    store: Store
    scratch: Callable[[], AbstractContextManager[Path]]
    required: Sequence[str]
    expected: Expectation | None = None
    pauses: Sequence[float] = PAUSES

    def whole_run(self) -> Iterator[Finding]:
        """A finding on each checkpoint, newest first, and then on what is missing altogether."""
        view = read_view(self.store)
        found: list[Finding] = []
        for checkpoint in view.checkpoints:
            try:
                found.append(self._of(checkpoint, view))
            except Unserved as error:
                name = str(checkpoint.name)
                found.append(Finding(name, f"NOT SERVED: {error}", unserved=True))
            yield found[-1]
        if view.latest is not None and self._vanished(view, found):
            yield _damage(view.latest, f"{LATEST} names it, and it is not there")
            return
        known = any(finding.damaged or finding.unserved or finding.whole for finding in found)
        if known or view.record is None:
            return
        # A running job may have made its first checkpoint in the meantime.
        traces = traces_of_checkpoints(self.store, view)
        if traces and not read_view(self.store).committed:
            yield _damage(RECORD, f"{traces[0]}, but no checkpoint is left")

    def _of(self, checkpoint: StoredCheckpoint, view: RunView) -> Finding:
        name = checkpoint.name
        if checkpoint.committed:
            return self.one(name)
        # LATEST is read again: a running job may have committed the next checkpoint in the
        # meantime, and may be pruning this one.
        if checkpoint.state is CheckpointState.LOST_MANIFEST:
            if read_latest(self.store) == view.latest:
                return _damage(str(name), f"{name.key(MANIFEST)} is missing")
            return Finding(str(name), CheckpointState.UNFINISHED.value)
        return Finding(str(name), checkpoint.state.value)

    def one(self, name: CheckpointName) -> Finding:
        """The finding on a committed checkpoint, after reading all its bytes. Raises Unserved."""
        try:
            with self.scratch() as folder:
                path = fetch(
                    self.store,
                    name,
                    folder,
                    required=self.required,
                    expected=self.expected,
                    pauses=self.pauses,
                )
                check_expected(name, path, self.expected)
        except (Damaged, NotFound) as error:
            left = [info.key for info in self.store.list(name.key())]
            if name.key(MANIFEST) not in left:  # pruning deletes the manifest first
                return Finding(str(name), "removed just now")
            return _damage(str(name), str(error))
        return Finding(str(name), _WHOLE)

    def _vanished(self, view: RunView, found: Sequence[Finding]) -> bool:
        latest = view.latest
        if latest in [finding.name for finding in found] or read_latest(self.store) != latest:
            return False
        # A start may have set the checkpoint aside and not committed since. Earlier versions wrote
        # the time behind the name of the folder.
        return not any(f"{folder}-".startswith(f"{latest}-") for folder in view.quarantined)


def traces_of_checkpoints(store: Store, view: RunView) -> list[str]:
    """What in the store shows that there was a checkpoint once. Reads the records of attempts."""
    traces = []
    if view.latest is not None and view.latest not in [str(name) for name in view.late]:
        traces.append(f"{LATEST} names {view.latest}")
    if view.record and (extensions := view.record.record.extensions):
        traces.append(f"{RECORD} has an extension from step {extensions[0].base}")
    if (begun := max((attempt.start_step for attempt in view.attempts), default=0)) > 0:
        traces.append(f"{ATTEMPTS} has one that went on from step {begun}")
    records = read_attempts(store, view.attempts)
    if commits := sum(record.commits for record in records):
        traces.append(f"{ATTEMPTS} records {counted(commits, 'commit')}")
    if len(records) < len(view.attempts):
        traces.append(f"{ATTEMPTS} has one that cannot be read")
    if view.quarantined:
        traces.append(f"{QUARANTINE} has {max(view.quarantined)}")
    # Rows may go into the store before the first checkpoint, but never before an attempt's record.
    if METRICS_KEY in view.objects and (not view.attempts or _tells_of_commits(store)):
        traces.append(f"{METRICS_KEY} has rows of an attempt that saved")
    return traces


def _tells_of_commits(store: Store) -> bool:
    """Whether a row was written after a checkpoint of its attempt."""
    try:
        content, _ = store.get(METRICS_KEY, max_bytes=_MOST_METRICS)
    except NotFound:
        return False
    except Damaged:
        return True  # far too many rows for a run without checkpoints
    return re.search(rb'"saves_committed": *[1-9]', content) is not None


def _damage(name: str, what: str) -> Finding:
    return Finding(name, f"DAMAGED: {what}", damaged=True)
