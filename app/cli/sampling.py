"""How text is drawn, as it is typed: flags of `generate`, and lines of its prompt loop."""

import argparse
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.cli.arguments import count_from, number_between

if TYPE_CHECKING:  # it loads torch
    from app.generation.decoding import Sampling

# The ids of all tokens are kept in memory; a higher number is a slip of the finger.
_MOST_TOKENS = 1_000_000


@dataclass(frozen=True)
class _Choice:
    """A field of `Sampling`, under the name that it is typed by."""

    name: str
    type: Callable[[str], float]
    default: float
    text: str


_CHOICES = (
    _Choice("temperature", number_between(0, 100), 0.8, "0: greedy"),
    _Choice("top_k", count_from(0), 50, "0: all tokens"),
    _Choice("top_p", number_between(0, 1), 0.95, "1: all tokens"),
    _Choice("repetition_penalty", number_between(0.01, 100), 1.0, "1: none"),
    _Choice(
        "max_tokens",
        count_from(1, _MOST_TOKENS),
        100,
        f"length of the continuation, at most {_MOST_TOKENS:,}",
    ),
)


def add_sampling(command: argparse.ArgumentParser) -> None:
    for choice in _CHOICES:
        command.add_argument(
            f"--{choice.name}", type=choice.type, default=choice.default, help=choice.text
        )


def sampling_of(arguments: argparse.Namespace, seed: int) -> "Sampling":
    from app.generation.decoding import Sampling

    typed: dict[str, Any] = {choice.name: getattr(arguments, choice.name) for choice in _CHOICES}
    return Sampling(**typed, seed=seed)


def changed(sampling: "Sampling", name: str, text: str) -> "Sampling":
    """`sampling` with another value. Raises ValueError, which says what can be typed instead."""
    choice = next((choice for choice in _CHOICES if choice.name == name), None)
    if choice is None:
        names = ", ".join(f"/{choice.name}" for choice in _CHOICES)
        raise ValueError(f"/{name} is not known: {names} and /quit are")
    try:
        value: Any = choice.type(text)
        return dataclasses.replace(sampling, **{name: value})
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"/{name}: {error}") from error
    except ValueError as error:
        raise ValueError(f"/{name} takes a number, not {text!r}") from error
