"""`checkpoints list` and `verify`; the other verbs are in modules of their own."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from app.cli.arguments import Commands, count_from
from app.cli.changes import add_checkpoint_commands
from app.cli.chosen_step import add_step_or_word, step_or_word
from app.cli.diff import add_diff
from app.cli.named_run import existing_run, scratch_folder
from app.cli.pull import add_pull
from app.cli.tables import add_json, show_json
from app.console import counted, size
from app.errors import Damaged, IncompatibleRun, NotFound, Unserved
from app.observe.chosen_checkpoint import chosen_checkpoint
from app.printable import show
from app.run.checkpoints import read_manifest
from app.run.journal import AttemptRecord, attempt_table, read_attempts
from app.run.view import CheckpointState, RunView, StoredCheckpoint, read_view
from app.settings.combined import Settings
from app.stores.contract import Store
from app.training.preemption import StopRequest

if TYPE_CHECKING:
    from app.run.verification import Finding


def add_commands(commands: Commands) -> None:
    verbs = commands.group("checkpoints", "list, pull, verify or change checkpoints")
    listing = verbs.add("list", list_checkpoints, "show the checkpoints and the attempts of a run")
    add_pull(verbs)
    add_diff(verbs)
    verify = verbs.add(
        "verify",
        verify_checkpoints,
        "check every byte of every checkpoint, and that none is missing",
    )
    add_step_or_word(verify, "all of them")
    add_checkpoint_commands(verbs)
    add_json(listing, verify)
    for verb in (listing, verify):
        verb.add_argument(
            "--attempts",
            type=count_from(0),
            default=10,
            help="how many attempts to show; default: 10",
        )


def list_checkpoints(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    store = existing_run(settings)
    view = read_view(store)
    rows = [_checkpoint_row(store, stored) for stored in view.checkpoints]
    attempts = read_attempts(store, view.newest_attempts(arguments.attempts))
    if arguments.json:
        shown = [{**attempt.model_dump(), "steps": attempt.steps} for attempt in attempts]
        show_json({"run": store.uri, "checkpoints": rows, "attempts": shown})
        return
    if view.record is not None:
        record = view.record.record
        extended = "".join(f", extended to {e.target}" for e in record.extensions)
        show(f"{store.uri}: target step {record.total_steps}{extended}")
    if rows:
        show(f"{'checkpoint':<24} {'train loss':>10} {'size':>9}  {'saved at':<26} state")
    else:
        show(_no_checkpoint(store, settings))
    for row in rows:
        loss = row.get("train_loss")
        loss_text = f"{loss:.4f}" if isinstance(loss, float) else "-"
        show(
            f"{row['name']:<24} {loss_text:>10} {size(row['bytes']):>9}  "
            f"{row.get('created_at', '-'):<26} {row['state']}"
        )
    if attempts:
        for line in ("", *attempt_table(attempts)):
            show(line)


def _no_checkpoint(store: Store, settings: Settings) -> str:
    every = settings.checkpoints.checkpoint_every_steps
    return (
        f"{store.uri} holds no checkpoint yet: `train` saves one after each "
        f"CHECKPOINT_EVERY_STEPS={every} steps, and at its end"
    )


def _checkpoint_row(store: Store, stored: StoredCheckpoint) -> dict[str, Any]:
    row: dict[str, Any] = {"name": str(stored.name), "step": stored.name.step, "bytes": stored.size}
    if stored.state not in (CheckpointState.COMMITTED, CheckpointState.LATE):
        return row | {"state": stored.state.value}
    try:
        manifest = read_manifest(store, stored.name)
    except NotFound:
        return row | {"state": "removed just now"}
    except IncompatibleRun as error:
        return row | {"state": str(error)}
    except Damaged as error:
        return row | {"state": f"damaged: {error}"}
    except Unserved as error:
        return row | {"state": f"not served: {error}"}
    row |= {"train_loss": manifest.train_loss, "created_at": manifest.created_at}
    return row | {"state": stored.state.value}


def verify_checkpoints(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    """Read every byte of every checkpoint, and look for missing ones.

    Raises Damaged, once all findings are printed, if any of them is damaged, or is not served while
    others are, and Unserved if none is.
    """
    from app.run.verification import Verification
    from app.state.snapshot import STATE_FILES, Expected

    store, found = existing_run(settings), []
    view = read_view(store)
    text = step_or_word(arguments)
    only = None if text is None else chosen_checkpoint(store, view, text)
    expected = Expected(view.record.record if view.record else None)
    verification = Verification(store, partial(scratch_folder, settings), STATE_FILES, expected)
    for finding in [verification.one(only)] if only else verification.whole_run():
        if not arguments.json:
            show(f"{finding.name}  {finding.text}")
        found.append(finding)
    unserved = [finding for finding in found if finding.unserved]
    damaged = [finding.name for finding in found if finding.damaged]
    if any(finding.whole for finding in found):  # where the store serves others, that is damage
        damaged += [finding.name for finding in unserved]
    attempts = read_attempts(store, view.newest_attempts(arguments.attempts))
    if arguments.json:
        told = [{**asdict(finding), "whole": finding.whole} for finding in found]
        show_json({"run": store.uri, "findings": told, "attempts": attempts})
    else:
        _show_findings(store, settings, view, found, attempts)
    if damaged:
        raise Damaged(f"{store.uri} is damaged: {', '.join(damaged)}")
    if unserved:
        raise Unserved(f"{store.uri}: no checkpoint can be read. {unserved[0].text}")


def _show_findings(
    store: Store,
    settings: Settings,
    view: RunView,
    found: Sequence["Finding"],
    attempts: Sequence[AttemptRecord],
) -> None:
    """What follows the list of findings, for people."""
    here = [str(stored.name) for stored in view.checkpoints]
    if any(finding.damaged and finding.name in here for finding in found):
        show("`python -m app quarantine add` sets damaged checkpoints aside")
    if not found:
        show(_no_checkpoint(store, settings))
    elif not any(finding.damaged or finding.unserved for finding in found):
        show(f"{counted(sum(finding.whole for finding in found), 'checkpoint')} verified")
    if attempts:
        for line in ("", *attempt_table(attempts)):
            show(line)
