"""The last lines of an attempt in the log: what came out, and what to type next."""

import logging

from app.console import counted, duration
from app.errors import AppError
from app.failures import first_line
from app.run.view import read_view
from app.settings.calling import NextSteps
from app.settings.combined import Settings
from app.stores.opening import open_store
from app.training.attempt import Attempt

log = logging.getLogger(__name__)


def say_what_came_out(settings: Settings, run_name: str, attempt: Attempt) -> None:
    """For a run that has reached its target."""
    steps = counted(attempt.step, "step")
    if attempt.start_step:
        steps += f", the last {attempt.step - attempt.start_step:,} of them,"
    log.info(
        "run %s: %s, %s in %s; %s",
        run_name,
        _losses(attempt),
        steps,
        duration(attempt.journal.record.seconds),
        _kept(settings, run_name),
        extra={"fields": {"result": _numbers(attempt)}},
    )
    say_what_is_next(settings, run_name)


def say_what_is_next(settings: Settings, run_name: str) -> None:
    for purpose, command in NextSteps(settings, run_name).after_the_target():
        _say_command(f"next, {purpose}", command)


def say_how_to_go_on(settings: Settings, run_name: str, attempt: Attempt) -> None:
    """For an attempt that was stopped. The time may be short: the store is not asked."""
    if attempt.step > attempt.start_step:
        log.info(
            "run %s so far: %s, %s; checkpoints in %s",
            run_name,
            _losses(attempt),
            counted(attempt.step, "step"),
            _place(settings, run_name),
            extra={"fields": {"result": _numbers(attempt)}},
        )
    _say_command("to go on", NextSteps(settings, run_name).to_go_on())


def _say_command(purpose: str, command: str) -> None:
    log.info("%s: %s", purpose, command, extra={"fields": {"next": command}})


def _losses(attempt: Attempt) -> str:
    text = f"train loss {attempt.train_loss:.4f}"
    if attempt.validation_loss is not None and attempt.validated_step is not None:
        text += f", validation loss {attempt.validation_loss:.4f}"
        if attempt.validated_step != attempt.step:
            text += f" at step {attempt.validated_step:,}"
    return text


def _numbers(attempt: Attempt) -> dict[str, float | None]:
    return {
        "step": attempt.step,
        "target": attempt.target,
        "train_loss": attempt.train_loss,
        # That of the same weights, or none.
        "validation_loss": attempt.validation_loss
        if attempt.validated_step == attempt.step
        else None,
        "seconds": attempt.journal.record.seconds,
    }


def _kept(settings: Settings, run_name: str) -> str:
    place = _place(settings, run_name)
    try:
        store = open_store(settings.checkpoints.checkpoint_uri, run_name)
        kept = len(read_view(store).committed)
    except AppError as error:  # the run is complete all the same
        log.warning("the checkpoints in %s could not be listed: %s", place, first_line(error))
        return f"checkpoints in {place}"
    return f"{counted(kept, 'checkpoint')} in {place}"


def _place(settings: Settings, run_name: str) -> str:
    return f"{settings.checkpoints.checkpoint_uri.rstrip('/')}/{run_name}"
