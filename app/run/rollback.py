"""What an operator changes in a run: the checkpoint that it goes on from, and what is set aside.

All of it happens under the lease, and whatever is no longer part of the run goes to quarantine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import NotFound
from app.run.checkpoints import write_latest
from app.run.clock import utc_now
from app.run.journal import AttemptJournal, AttemptRecord
from app.run.layout import MANIFEST, QUARANTINE, REASON, CheckpointName, file_of
from app.run.lease import Lease, WriteRight
from app.run.retention import quarantine
from app.run.view import RunView
from app.stores.contract import Store


@dataclass(frozen=True)
class Return:
    """The run goes on from `to`; the checkpoints `beyond` it are set aside.

    `set_aside` says that `to` lies in quarantine, from where it is moved back.
    """

    to: CheckpointName
    beyond: Sequence[CheckpointName]
    set_aside: bool = False

    def __str__(self) -> str:
        moved = f"{self.to} comes back from quarantine, and " if self.set_aside else ""
        aside = ", ".join(str(name) for name in self.beyond)
        rest = f"; set aside in {QUARANTINE}/: {aside}" if aside else ""
        return f"{moved}the run goes on from step {self.to.step} ({self.to}){rest}"


def rollback_to(view: RunView, text: str) -> Return:
    """Raises NotFound unless `text` names a committed checkpoint."""
    return _return(view, view.find(text), set_aside=False)


def accepted(view: RunView, text: str) -> Return:
    """Raises NotFound unless `text` names a checkpoint that is late, or that lies in quarantine.

    It may be written as a name, or as a step if only one has that step.
    """
    aside = [name for folder in view.quarantined if (name := CheckpointName.parse(folder))]
    choice = sorted({*view.late, *aside}, reverse=True)
    found = [name for name in choice if text in (str(name), str(name.step))]
    if len(found) != 1:
        known = ", ".join(str(name) for name in choice) or "none"
        raise NotFound(
            f"{text!r} does not name one checkpoint of {view.uri} that is late or in quarantine; "
            f"there are: {known}"
        )
    return _return(view, found[0], set_aside=found[0] not in view.late)


def _return(view: RunView, to: CheckpointName, set_aside: bool) -> Return:
    beyond = [name for name in [*view.committed, *view.late] if name > to]
    return Return(to, sorted(beyond), set_aside)


def carry_out(change: Return, store: Store, lease: Lease) -> None:
    """Let the run go on from there.

    What this writes first makes the rest late, so a start after a kill sets the rest aside.
    Raises Fenced, and the store's errors.
    """
    why = f"an operator let the run go on from {change.to}"
    if change.set_aside:
        _bring_back(store, change.to, lease)
    record = AttemptRecord(
        epoch=lease.epoch,
        holder=lease.holder,
        trainer="none",
        started_at=utc_now(),
        resumed_from=str(change.to),
        start_step=change.to.step,
        step=change.to.step,
        ended=why,
    )
    same_step = [name for name in change.beyond if name.step == change.to.step]
    for name in same_step:  # which no fence makes late
        quarantine(store, name, why, lease)
    lease.check()
    AttemptJournal(store, record).begin()
    write_latest(change.to, lease)
    for name in change.beyond:
        if name not in same_step:
            quarantine(store, name, why, lease)


def _bring_back(store: Store, name: CheckpointName, lease: WriteRight) -> None:
    """Move a checkpoint back from quarantine: its manifest last, which makes it a checkpoint."""
    files = {file_of(info.key) for info in store.list(name.quarantine_key())}
    for file in [*sorted(files - {MANIFEST, REASON}), MANIFEST]:
        lease.check()
        store.move(name.quarantine_key(file), name.key(file))
    store.delete([name.quarantine_key(REASON)])


def purge(store: Store, view: RunView, folder: str, lease: WriteRight) -> None:
    """Delete a folder in quarantine. Its reason goes last, so that a kill leaves it listed."""
    prefix = f"{QUARANTINE}/{folder}/"
    keys = [key for key in view.objects if key.startswith(prefix)]
    for key in sorted(keys, key=lambda key: key.endswith(f"/{REASON}")):
        lease.check()
        store.delete([key])


def size_in_quarantine(view: RunView, folder: str) -> int:
    """The size of its files in bytes."""
    prefix = f"{QUARANTINE}/{folder}/"
    return sum(size for key, size in view.objects.items() if key.startswith(prefix))
