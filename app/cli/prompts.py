"""The prompts that `generate` is given: on the command line, in a file, or on standard input."""

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from app.errors import ConfigError
from app.failures import disk_failures

log = logging.getLogger(__name__)

_FIELD = "prompt"


def prompts_in(path: Path) -> Sequence[str]:
    """One prompt for each line, or for each JSON object where the first line is one with a prompt.

    Empty lines are passed over. Raises ConfigError for a file that is missing or holds no prompts.
    """
    try:
        with disk_failures(f"--prompts {path}"):
            text = path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"--prompts {path} does not exist") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--prompts {path} is not UTF-8: {error}") from error
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise ConfigError(f"--prompts {path} holds no prompt")
    if _prompt(lines[0][1]) is None:
        return [line.removesuffix("\r") for _, line in lines]
    found = [(number, _prompt(line)) for number, line in lines]
    if wrong := [number for number, prompt in found if prompt is None]:
        raise ConfigError(
            f"--prompts {path}: line {wrong[0]} is no JSON object with a {_FIELD!r} like the first"
        )
    return [prompt for _, prompt in found if prompt is not None]


def prompt_on_standard_input() -> str:
    """All of it, without its last line end; "" where a terminal or nothing is there.

    Raises ConfigError if it is no UTF-8.
    """
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    log.info("no --prompt: standard input is read to its end")
    try:
        with disk_failures("standard input"):
            return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"standard input is not UTF-8: {error}") from error


def _prompt(line: str) -> str | None:
    """The prompt of a line of JSON; None if it is no such line."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    prompt = value.get(_FIELD) if isinstance(value, dict) else None
    return prompt if isinstance(prompt, str) else None
