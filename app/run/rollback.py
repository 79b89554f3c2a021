"""What an operator changes in a run: the checkpoint that it goes on from, and what is set aside.

All of it happens under the lease, and whatever is no longer part of the run goes to quarantine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import NotFound
from app.run.checkpoints import write_latest
from app.run.clock import utc_now
from app.run.journal import AttemptJournal, AttemptRecord
from app.run.layout import MANIFEST, QUARANTINE, REASON, CheckpointName
from app.run.lease import Lease, WriteRight
from app.run.retention import move_aside, quarantine
from app.run.tracked_run import begin_anew
from app.run.view import CheckpointState, RunView
from app.stores.contract import Store


@dataclass(frozen=True)
class Return:
    """The run goes on from `to`; the checkpoints `beyond` it are set aside.

    `set_aside` says that `to` lies whole in quarantine, from where it is moved back.
    """

    to: CheckpointName
    beyond: Sequence[CheckpointName]
    set_aside: bool = False

    def __str__(self) -> str:
        moved = f"{self.to} will come back from quarantine, and " if self.set_aside else ""
        aside = ", ".join(str(name) for name in self.beyond)
        rest = f"; to be set aside in {QUARANTINE}/: {aside}" if aside else ""
        return f"{moved}the run will go on from step {self.to.step} ({self.to}){rest}"


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
    manifest = found[0].quarantine_key(MANIFEST)
    return _return(view, found[0], set_aside=manifest in view.objects)


def _return(view: RunView, to: CheckpointName, set_aside: bool) -> Return:
    lost = view.of_state(CheckpointState.LOST_MANIFEST)
    beyond = [name for name in [*view.committed, *view.late, *lost] if name > to]
    return Return(to, sorted(beyond), set_aside)


def carry_out(change: Return, store: Store, lease: Lease) -> None:
    """Let the run go on from there.

    What this writes first makes the rest late, so a start after a kill sets the rest aside.
    Raises Fenced, and the store's errors.
    """
    why = f"an operator let the run go on from {change.to}"
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
    if change.beyond:
        begin_anew(store)
    AttemptJournal(store, record).begin()
    write_latest(change.to, lease)
    for name in change.beyond:
        if name not in same_step:
            quarantine(store, name, why, lease)


def complete_move(store: Store, view: RunView, name: CheckpointName, lease: WriteRight) -> None:
    """Move to quarantine what is left of a checkpoint that lies half there."""
    if name in view.of_state(CheckpointState.LEAVING):
        move_aside(store, name, lease)


def _bring_back(store: Store, name: CheckpointName, lease: WriteRight) -> None:
    """Move what is in quarantine back: the manifest last, which makes it a checkpoint."""
    prefix = name.quarantine_key()
    files = [info.key.removeprefix(prefix) for info in store.list(prefix)]
    for file in sorted(set(files) - {REASON}, key=lambda file: file == MANIFEST):
        lease.check()
        store.move(name.quarantine_key(file), name.key(file))
    if REASON in files and store.deletes:
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
