"""Commands that change a run in the store: each says what it would do, and asks first."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from app.cli.arguments import Commands, count_from
from app.cli.confirmation import confirmed
from app.cli.named_run import existing_run, lease_of_a_command, scratch_folder
from app.cli.tables import add_json, show_json
from app.console import counted, size
from app.errors import ConfigError, Damaged, NotFound, Unavailable
from app.printable import show
from app.run.layout import MANIFEST, QUARANTINE, REASON, CheckpointName
from app.run.lease import Lease, read_lease, take_from
from app.run.retention import Reason, delete, quarantine, superfluous
from app.run.rollback import (
    Return,
    accepted,
    carry_out,
    complete_move,
    purge,
    rollback_to,
    size_in_quarantine,
)
from app.run.view import RunView, read_view
from app.settings.combined import Settings
from app.stores.contract import Store
from app.stores.documents import decode_document
from app.training.preemption import StopRequest

if TYPE_CHECKING:
    from app.run.verification import Verification

T = TypeVar("T")


def add_checkpoint_commands(verbs: Commands) -> None:
    """Add those that are verbs of `checkpoints`."""
    rollback = verbs.add("rollback", rollback_run, "let the run go on from an earlier checkpoint")
    rollback.add_argument("--to", required=True, metavar="CHECKPOINT", help="step or name")
    accept = verbs.add(
        "accept", accept_checkpoint, "let the run go on from a late or quarantined checkpoint"
    )
    accept.add_argument("checkpoint", help="step or name")
    pruning = verbs.add("prune", prune_checkpoints, "delete all but the newest and the best")
    pruning.add_argument(
        "--keep", type=count_from(0), required=True, help="how many of the best by train loss stay"
    )
    takeover = verbs.add("takeover", take_over, "free the run of a holder that is known to be dead")
    for verb in (rollback, accept, pruning, takeover):
        _add_yes(verb)


def add_commands(commands: Commands) -> None:
    verbs = commands.group("quarantine", "list, add or delete checkpoints that are set aside")
    add_json(verbs.add("list", list_quarantine, "show what was set aside, when and why"))
    _add_yes(
        verbs.add("add", add_to_quarantine, "set aside what `checkpoints verify` calls damaged")
    )
    purging = verbs.add("purge", purge_quarantine, "delete what was set aside")
    purging.add_argument("folder", nargs="*", help="as `quarantine list` shows it; default: all")
    _add_yes(purging)


def rollback_run(settings: Settings, arguments: argparse.Namespace, stop: StopRequest) -> None:
    """Let the run go on from an earlier checkpoint. Those beyond it are set aside."""
    store = existing_run(settings)
    change = rollback_to(read_view(store), arguments.to)
    if not change.beyond:
        show(f"nothing to do: {change.to} is the newest checkpoint")
        return
    _return_to(store, settings, arguments, stop, lambda view: rollback_to(view, str(change.to)))


def accept_checkpoint(settings: Settings, arguments: argparse.Namespace, stop: StopRequest) -> None:
    """Let the run go on from a checkpoint that is late, or that was set aside."""
    store = existing_run(settings)
    name = str(accepted(read_view(store), arguments.checkpoint).to)
    _return_to(store, settings, arguments, stop, lambda view: accepted(view, name))


def prune_checkpoints(settings: Settings, arguments: argparse.Namespace, stop: StopRequest) -> None:
    """Delete all checkpoints but the best ones by train loss, and the newest."""
    store, keep = existing_run(settings), arguments.keep

    def plan(view: RunView) -> list[CheckpointName]:
        return superfluous(store, view, keep, [])

    def say(names: list[CheckpointName]) -> str:
        doomed = ", ".join(str(name) for name in names)
        return f"{counted(len(names), 'checkpoint')} will be deleted: {doomed}"

    def act(names: list[CheckpointName], view: RunView, lease: Lease) -> None:
        _check_deletes(store)
        # Where it cannot be read, those that will be deleted are what the run has.
        _check_whole(store, settings, view, view.committed[0])
        delete(store, names, lease)
        for name in names:
            show(f"deleted {name}")

    change = _Change(plan, say, act, nothing="no checkpoint would be deleted")
    _under_lease(store, settings, arguments, stop, change)


def take_over(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    """Mark the lease as given back, so that the next start does not wait for its holder."""
    store = existing_run(settings)
    current = read_lease(store)
    if current is None or current[0].released:
        show(f"nothing to do: nobody holds {store.uri}")
        return
    record, etag = current
    if record.lock_scope:
        lock = store.exclusive_lock()
        if lock is None:
            raise ConfigError(
                f"a process of this run lives on this machine (the holder is {record.holder}): "
                "stop it, nothing was changed"
            )
        lock.release()
    confirmed(
        f"the lease of {record.holder} (epoch {record.epoch}) will be taken from it. If it lives "
        "after all, it ends with exit code 79 before it commits anything more",
        arguments.yes,
    )
    store.check()
    take_from(store, record, etag)
    show("the next start does not wait")


def list_quarantine(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    """Print each folder in quarantine with its size, and when and why it was set aside."""
    store = existing_run(settings)
    view = read_view(store)
    rows = [_set_aside(store, view, folder) for folder in sorted(view.quarantined)]
    if arguments.json:
        show_json({"run": store.uri, "quarantine": rows})
        return
    for row in rows:
        show(f"{row.folder}  {size(row.bytes)}  {row.set_aside_at or '-'}  {row.reason}")
    if not rows:
        show("nothing is in quarantine")


@dataclass(frozen=True)
class _SetAside:
    """A folder in quarantine. `set_aside_at` is None where its reason cannot be read."""

    folder: str
    bytes: int
    set_aside_at: str | None
    reason: str


def _set_aside(store: Store, view: RunView, folder: str) -> _SetAside:
    total, key = size_in_quarantine(view, folder), f"{QUARANTINE}/{folder}/{REASON}"
    try:
        reason = decode_document(store.get(key)[0], Reason, key)
    except (Damaged, NotFound) as error:
        return _SetAside(folder, total, None, str(error))
    return _SetAside(folder, total, reason.set_aside_at, reason.reason)


def add_to_quarantine(settings: Settings, arguments: argparse.Namespace, stop: StopRequest) -> None:
    """Set each damaged checkpoint aside, with the reason. Raises Damaged if no other is whole."""
    store = existing_run(settings)
    verification = _verification(store, settings, read_view(store))
    found = list(verification.whole_run())
    reasons = {finding.name: finding.text for finding in found if finding.damaged}
    if reasons and not any(finding.whole for finding in found):
        raise Damaged(
            f"{store.uri}: no checkpoint is whole, nothing was changed: restore one from a backup, "
            "or choose another RUN_NAME to start again"
        )

    def plan(view: RunView) -> list[CheckpointName]:
        names = [stored.name for stored in view.checkpoints if str(stored.name) in reasons]
        for name in names:
            if name.quarantine_key(MANIFEST) in view.objects:
                raise ConfigError(
                    f"{store.uri}/{QUARANTINE} holds another {name}: `quarantine purge {name}` "
                    "deletes that one, nothing was changed"
                )
        return names

    def say(names: list[CheckpointName]) -> str:
        lines = (f"{name}: {reasons[str(name)]}" for name in names)
        return f"to be set aside in {QUARANTINE}/: {'; '.join(lines)}"

    def act(names: list[CheckpointName], _: RunView, lease: Lease) -> None:
        for name in names:
            show(f"moved to {quarantine(store, name, reasons[str(name)], lease)}")

    _under_lease(
        store, settings, arguments, stop, _Change(plan, say, act, nothing="nothing is damaged")
    )


def purge_quarantine(settings: Settings, arguments: argparse.Namespace, stop: StopRequest) -> None:
    """Delete folders in quarantine. Raises NotFound for a name that is not there."""
    store = existing_run(settings)

    def plan(view: RunView) -> dict[str, int]:
        if missing := set(arguments.folder) - view.quarantined:
            raise NotFound(f"{store.uri}/{QUARANTINE} holds no {min(missing)}")
        folders = sorted(arguments.folder or view.quarantined)
        return {folder: size_in_quarantine(view, folder) for folder in folders}

    def say(sizes: dict[str, int]) -> str:
        total = size(sum(sizes.values()))
        return f"{total} in {QUARANTINE}/ will be deleted for good: {', '.join(sizes)}"

    def act(folders: dict[str, int], view: RunView, lease: Lease) -> None:
        _check_deletes(store)
        for folder in folders:
            purge(store, view, folder, lease)
            show(f"deleted {QUARANTINE}/{folder}")

    change = _Change(plan, say, act, nothing="nothing is in quarantine")
    _under_lease(store, settings, arguments, stop, change)


def _return_to(
    store: Store,
    settings: Settings,
    arguments: argparse.Namespace,
    stop: StopRequest,
    plan: Callable[[RunView], Return],
) -> None:
    """Let the run go on from a checkpoint, once every byte of it was verified."""

    def act(change: Return, view: RunView, lease: Lease) -> None:
        complete_move(store, view, change.to, lease)
        place = change.to.in_quarantine if change.set_aside else change.to
        _check_whole(store, settings, view, place)
        carry_out(change, store, lease)
        show(f"the next start goes on from step {change.to.step}")

    change = _Change(plan, str, act)
    _under_lease(store, settings, arguments, stop, change)


@dataclass(frozen=True)
class _Change(Generic[T]):
    """What is planned, by the view of a run; how it is said; and how it is done.

    `nothing` says that there is nothing to do, where the plan may be an empty one.
    """

    plan: Callable[[RunView], T]
    say: Callable[[T], str]
    act: Callable[[T, RunView, Lease], None]
    nothing: str = ""


def _under_lease(
    store: Store,
    settings: Settings,
    arguments: argparse.Namespace,
    stop: StopRequest,
    change: _Change[T],
) -> None:
    """Say what is planned, ask, and do it while no other process can write to the run.

    Raises Unavailable if somebody else changed the run in the meantime.
    """
    before = read_view(store)
    planned = change.plan(before)
    if change.nothing and not planned:
        show(f"nothing to do: {change.nothing}")
        return
    confirmed(f"{store.uri}: {change.say(planned)}", arguments.yes)
    store.check()  # what the store can do, and may not
    with lease_of_a_command(store, settings, stop, before.highest_epoch) as lease:
        view = read_view(store)
        if change.plan(view) != planned:
            raise Unavailable(f"{store.uri} has changed meanwhile, nothing was done: try again")
        change.act(planned, view, lease)


def _check_whole(store: Store, settings: Settings, view: RunView, name: CheckpointName) -> None:
    """Raises Damaged unless every byte of the checkpoint is right, and what fetching it raises."""
    finding = _verification(store, settings, view).one(name)
    if not finding.whole:
        raise Damaged(f"{name} is not whole, nothing was changed: {finding.text}")


def _verification(store: Store, settings: Settings, view: RunView) -> "Verification":
    from app.run.verification import Verification
    from app.state.snapshot import STATE_FILES, Expected

    expected = Expected(view.record.record if view.record else None)
    return Verification(store, partial(scratch_folder, settings), STATE_FILES, expected)


def _check_deletes(store: Store) -> None:
    if not store.deletes:
        raise ConfigError(
            f"{store.uri} forbids deletion: allow it to this key, nothing was deleted"
        )


def _add_yes(command: argparse.ArgumentParser) -> None:
    command.add_argument("--yes", action="store_true", help="do it without asking")
