"""`checkpoints pull`: a verified checkpoint here, as a folder that appears whole or not at all."""

import argparse
import logging
import time
from pathlib import Path

from tqdm import tqdm

from app.cli.arguments import Commands, place
from app.cli.chosen_step import add_step_or_word, step_or_word
from app.cli.named_run import existing_run
from app.console import on_terminal, size
from app.errors import ConfigError, NotFound
from app.failures import disk_failures
from app.observe.chosen_checkpoint import chosen_checkpoint
from app.run.layout import CheckpointName
from app.run.pulling import Pull, begun, discard
from app.run.view import RunView, read_view
from app.settings.combined import Settings
from app.stores.contract import Store
from app.training.preemption import StopRequest

log = logging.getLogger(__name__)

_WEIGHTS_ONLY_LEAVES_OUT = ("optimizer.safetensors",)
_LINE_EVERY = 30.0  # seconds, where no terminal shows a bar
_TRIES = 3  # with another checkpoint each, where one after the other is removed


def add_pull(verbs: Commands) -> None:
    pull = verbs.add(
        "pull",
        pull_checkpoint,
        "copy a verified checkpoint here; a pull that was cut short is gone on with",
    )
    add_step_or_word(pull, "the one of a pull that was cut short, or the newest")
    pull.add_argument(
        "--to", type=place, metavar="DIR", help="folder to create; default: RUN-step-N"
    )
    pull.add_argument("--weights_only", action="store_true", help="leave the optimizer out")


def pull_checkpoint(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    """The store is only read: no lease is taken, and nothing is written down.

    Raises NotFound where there is no such checkpoint, and what `Pull.run` raises.
    """
    store, text = existing_run(settings), step_or_word(arguments)
    leave_out = _WEIGHTS_ONLY_LEAVES_OUT if arguments.weights_only else ()
    for left in reversed(range(_TRIES)):
        view = read_view(store)
        name, target = _chosen(store, view, text, arguments.to)
        try:
            _pull(store, view, name, target, leave_out)
        except NotFound:
            if not left:
                raise
            log.warning("step %d was removed from the store while it was pulled", name.step)
        else:
            print(target)
            return


def _chosen(
    store: Store, view: RunView, text: str | None, to: Path | None
) -> tuple[CheckpointName, Path]:
    """The checkpoint, and the folder that it is to become."""
    name = chosen_checkpoint(store, view, text or "latest")
    with disk_failures(f"--to {_target(store, name, to)}"):
        if text is None:
            left_over = (n for n in view.committed if n in begun(_target(store, n, to)))
            name = next(left_over, name)
        target = _target(store, name, to)
        if target.exists():
            raise ConfigError(f"{target} exists already: name another folder with --to")
        for left in begun(target):
            if left != name:
                discard(target, left)
                log.info("removed what a pull of step %d, which was cut short, had left", left.step)
    return name, target


def _target(store: Store, name: CheckpointName, to: Path | None) -> Path:
    return Path(to or f"{store.uri.rsplit('/', 1)[1]}-step-{name.step}").absolute()


def _pull(
    store: Store, view: RunView, name: CheckpointName, target: Path, leave_out: tuple[str, ...]
) -> None:
    from app.state.snapshot import Expected

    expected = Expected(view.record.record if view.record else None)
    with disk_failures(f"--to {target}"), _Shown(name.step, gone_on=name in begun(target)) as shown:
        Pull(store, name, target, expected, shown.begins, shown.arrived).run(leave_out)


class _Shown:
    """How far a pull is: a bar on a terminal, and a line now and then where there is none."""

    def __init__(self, step: int, *, gone_on: bool) -> None:
        self._step, self._gone_on = step, gone_on
        self._total = self._here = 0
        self._said_at = time.monotonic()
        self._bar: tqdm[None] | None = None

    def __enter__(self) -> "_Shown":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def begins(self, total: int) -> None:
        self._total = total
        what = "pulling, from where it was cut short," if self._gone_on else "pulling"
        log.info("%s step %d: %s", what, self._step, size(total))
        if on_terminal():
            self._bar = tqdm(total=total, unit="B", unit_scale=True, leave=False, desc="pulling")

    def arrived(self, count: int) -> None:
        self._here += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._said_at > _LINE_EVERY:
            self._said_at = time.monotonic()
            log.info("pulled %s of %s", size(self._here), size(self._total))
