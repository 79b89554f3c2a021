"""`checkpoints list`, `pull` and `verify`."""

import argparse
import json
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from app.cli.arguments import Commands, count_from, place
from app.cli.named_run import existing_run, scratch_folder
from app.console import counted, size
from app.errors import ConfigError, Damaged, IncompatibleRun, NotFound
from app.failures import disk_failures
from app.run.attempt_text import attempt_table
from app.run.checkpoints import (
    StoredCheckpoint,
    find_checkpoint,
    read_latest,
    read_manifest,
    stored_checkpoints,
)
from app.run.fetching import fetch
from app.run.journal import read_attempts
from app.run.record import load_record
from app.settings.combined import Settings
from app.stores.contract import Store
from app.training.preemption import StopRequest

_WEIGHTS_ONLY_LEAVES_OUT = ("optimizer.safetensors",)


def add_commands(commands: Commands) -> None:
    verbs = commands.group("checkpoints", "list, pull or verify checkpoints")
    listing = verbs.add("list", list_checkpoints, "show the checkpoints and the attempts of a run")
    listing.add_argument("--json", action="store_true", help="as JSON")
    pull = verbs.add("pull", pull_checkpoint, "copy a verified checkpoint here")
    pull.add_argument("checkpoint", nargs="?", help="step or name; default: the newest")
    pull.add_argument(
        "--to", type=place, metavar="DIR", help="folder to create; default: RUN-step-N"
    )
    pull.add_argument("--weights_only", action="store_true", help="leave the optimizer out")
    verify = verbs.add(
        "verify",
        verify_checkpoints,
        "check every byte of every checkpoint, and that none is missing",
    )
    verify.add_argument("checkpoint", nargs="?", help="step or name; default: all")
    for verb in (listing, verify):
        verb.add_argument(
            "--attempts",
            type=count_from(0),
            default=10,
            help="how many attempts to show; default: 10",
        )


def list_checkpoints(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    store = existing_run(settings)
    latest = read_latest(store)
    rows = [_checkpoint_row(store, stored, latest) for stored in stored_checkpoints(store)]
    attempts = read_attempts(store, newest=arguments.attempts)
    if arguments.json:
        shown = [{**attempt.model_dump(), "steps": attempt.steps} for attempt in attempts]
        print(json.dumps({"checkpoints": rows, "attempts": shown}, indent=1))
        return
    stored_record = load_record(store)
    if stored_record is not None:
        record = stored_record.record
        extended = "".join(f", extended to {e.target}" for e in record.extensions)
        print(f"{store.uri}: target step {record.total_steps}{extended}")
    print(f"{'checkpoint':<24} {'train loss':>10} {'size':>9}  {'saved at':<26} state")
    for row in rows:
        loss = row.get("train_loss")
        loss_text = f"{loss:.4f}" if isinstance(loss, float) else "-"
        print(
            f"{row['name']:<24} {loss_text:>10} {size(row['bytes']):>9}  "
            f"{row.get('created_at', '-'):<26} {row['state']}"
        )
    if attempts:
        print("\n" + "\n".join(attempt_table(attempts)))


def _checkpoint_row(store: Store, stored: StoredCheckpoint, latest: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": str(stored.name),
        "step": stored.name.step,
        "bytes": sum(stored.sizes.values()),
    }
    if not stored.has_manifest:
        lost = stored.lost_manifest(latest)
        return row | {"state": "damaged: its manifest is missing" if lost else "unfinished upload"}
    try:
        manifest = read_manifest(store, stored.name)
    except NotFound:
        return row | {"state": "removed just now"}
    except IncompatibleRun as error:
        return row | {"state": str(error)}
    except Damaged as error:
        return row | {"state": f"damaged: {error}"}
    row |= {"train_loss": manifest.train_loss, "created_at": manifest.created_at}
    return row | {"state": "late: not part of the run" if stored.late else "committed"}


def verify_checkpoints(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    """Read every byte of every checkpoint, and look for missing ones.

    Raises Damaged, once all findings are printed, if any of them is damaged.
    """
    from app.run.verification import Verification
    from app.state.snapshot import STATE_FILES

    store, found = existing_run(settings), []
    only = find_checkpoint(store, arguments.checkpoint) if arguments.checkpoint else None
    verification = Verification(store, partial(scratch_folder, settings), STATE_FILES)
    for finding in [verification.one(only)] if only else verification.whole_run():
        print(f"{finding.name}  {finding.text}")
        found.append(finding)
    damaged = [finding.name for finding in found if finding.damaged]
    if not damaged:
        print(f"{counted(sum(finding.whole for finding in found), 'checkpoint')} verified")
    if attempts := read_attempts(store, newest=arguments.attempts):
        print("\n" + "\n".join(attempt_table(attempts)))
    if damaged:
        raise Damaged(f"{store.uri} is damaged: {', '.join(damaged)}")


def pull_checkpoint(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    """Copy a verified checkpoint into a folder, which appears whole or not at all."""
    store = existing_run(settings)
    name = find_checkpoint(store, arguments.checkpoint or "latest")
    target = Path(arguments.to or f"{store.uri.rsplit('/', 1)[1]}-step-{name.step}").absolute()
    if target.exists():
        raise ConfigError(f"{target} exists already: name another folder with --to")
    leave_out = _WEIGHTS_ONLY_LEAVES_OUT if arguments.weights_only else ()
    wanted = [file for file in read_manifest(store, name).files if file not in leave_out]
    with disk_failures(f"--to {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=target.parent) as scratch:
            partial = Path(scratch) / "checkpoint"
            partial.mkdir()
            source = fetch(store, name, partial, only=wanted)
            if source != partial:
                for file in wanted:
                    shutil.copyfile(source / file, partial / file)
            partial.rename(target)
    print(target)
