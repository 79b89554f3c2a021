"""What a run is doing at this moment, as its store tells it, in words."""

from collections.abc import Iterator
from dataclasses import dataclass

from app.console import duration
from app.observe.history import kind_of
from app.observe.markup import ago, moment
from app.observe.reported_run import ReportedRun

_WRITES_MISSED = 3  # a start that told nothing for so many of its pauses is taken for dead


@dataclass(frozen=True)
class Activity:
    """`kind` is one of `app.observe.history.KINDS`, or silent, or idle. `notes` are sentences."""

    kind: str
    headline: str
    notes: tuple[str, ...]


def activity_of(run: ReportedRun) -> Activity:
    """What the run is doing. Times of others' clocks are compared with the reader's."""
    kind, headline, notes = _of_the_holder(run)
    if (waiting := _waiting(run)) is None:
        return Activity(kind, headline, notes)
    doing, told, lives = waiting
    if not lives or kind == "running":
        return Activity(kind, headline, (*notes, f"another start: {doing}, {told}"))
    return Activity("running", doing, (told, f"before that: {headline}"))


def _of_the_holder(run: ReportedRun) -> tuple[str, str, tuple[str, ...]]:
    lease = run.lease
    newest = run.attempts[-1] if run.attempts else None
    if newest and newest.ended is not None and (lease is None or newest.epoch >= lease.epoch):
        kind = kind_of(newest)
        words = {"done": "finished", "stopped": "stopped"}.get(kind, "ended with an error")
        return kind, f"{words} at step {newest.step:,}", (newest.ended,)
    if lease is None:
        return "idle", "not started yet", ("the store says of no process that it trains this run",)
    held = f"by {lease.holder}, attempt {lease.epoch}"
    if lease.released:
        return "idle", "idle: no process has the run", (f"last {held}",)
    if not run.alive:
        silence = ago(run.read_at - lease.renewed_at)
        return (
            "silent",
            f"silent since {moment(lease.renewed_at)} UTC, {silence}",
            (
                f"last sign of life {held}: {_doing(run)}",
                "its process was killed, or does not reach the store: start the job again",
            ),
        )
    renewed = ago(run.read_at - lease.renewed_at)
    return "running", _doing(run), (f"{held}; last sign of life {renewed}",)


def _doing(run: ReportedRun) -> str:
    lease = run.lease
    doing = (lease.doing if lease else "") or "held by a process"
    if lease is None or lease.step is None:
        return doing
    return f"{doing}: step {lease.step:,}{f' of {run.target:,}' if run.target else ''}"


def _waiting(run: ReportedRun) -> tuple[str, str, bool] | None:
    """What a start without the lease does, who says so, and whether it still lives. None if there
    is none, and for one that has been dead for longer than the newest holder."""
    told = run.waiting
    if told is None:
        return None
    silence = run.read_at - told.at
    by = f"by {told.holder}, for {duration(max(0.0, told.at - told.since))}"
    if silence <= _WRITES_MISSED * told.every:
        return told.doing, by, True
    if run.lease is not None and run.lease.renewed_at >= told.at:
        return None
    return f"silent since {moment(told.at)} UTC while {told.doing}", by, False


def problems_of(run: ReportedRun) -> Iterator[str]:
    """What of the run cannot be read, and what is damaged."""
    yield from run.problems
    for checkpoint in run.checkpoints:
        if checkpoint.state.startswith("damaged"):
            yield f"checkpoint {checkpoint.name}: {checkpoint.state}"
