"""How a command is told which checkpoint to take: `--step`, or the word after the command."""

import argparse

from app.errors import UsageError

_CHOICES = "a step, a name, latest, or best (lowest validation loss)"


def add_step(command: argparse.ArgumentParser, default: str, *older: str) -> None:
    """Add `--step`, and the `older` spellings of it, which set `arguments.step`.

    `default` says in the help what is taken without it.
    """
    command.add_argument("--step", *older, help=f"{_CHOICES}; default: {default}")


def add_step_or_word(command: argparse.ArgumentParser, default: str) -> None:
    """As `add_step`, for commands that take the checkpoint as a word too."""
    command.add_argument("checkpoint", nargs="?", help="the same as --step")
    add_step(command, default)


def step_or_word(arguments: argparse.Namespace) -> str | None:
    """What was typed; None for nothing. Raises UsageError where both were, and differ."""
    step: str | None = arguments.step
    word: str | None = arguments.checkpoint
    if step is not None and word is not None and step != word:
        raise UsageError(f"{word} and --step {step} name two checkpoints: leave one of them out")
    return step if step is not None else word
