"""`generate`: continue a prompt with a checkpoint, or with a Hugging Face model."""

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from app.cli.arguments import Commands, place
from app.cli.chosen_step import add_step
from app.cli.named_run import existing_run, scratch_folder
from app.cli.prompts import prompt_on_standard_input, prompts_in
from app.cli.sampling import add_sampling, sampling_of
from app.data.data_dir import DataDir
from app.errors import UsageError
from app.printable import printable
from app.settings.combined import Settings
from app.training.preemption import StopRequest

if TYPE_CHECKING:  # they load torch
    from app.generation.decoding import Sampling
    from app.generation.text import LoadedModel

log = logging.getLogger(__name__)


def add_commands(commands: Commands) -> None:
    command = commands.add(
        "generate", generate, "continue prompts with a checkpoint; on a terminal, ask for them"
    )
    given = command.add_mutually_exclusive_group()
    given.add_argument(
        "--prompt", help="text to continue; without it, a terminal is asked, else stdin is read"
    )
    given.add_argument(
        "--prompts",
        type=place,
        metavar="FILE",
        help='a prompt for each line, or JSON Lines with a "prompt" each',
    )
    command.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before it; may be repeated"
    )
    command.add_argument("--json", action="store_true", help="a line of JSON for each prompt")
    add_step(command, "the newest valid one", "--checkpoint")
    command.add_argument(
        "--model_dir", metavar="DIR", help="a Hugging Face directory or hub id instead"
    )
    add_sampling(command)


def generate(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    """Raises what loading a model raises, and Cancelled for Ctrl-C at the prompt."""
    if "" in arguments.stop:
        raise UsageError("--stop takes a text that is not empty")
    prompts = prompts_in(arguments.prompts) if arguments.prompts else None
    DataDir(settings.data.data_dir).take_temporary_files()
    if arguments.prompt is not None:
        prompts = [arguments.prompt]
    loaded, sampling = _load(settings, arguments), sampling_of(arguments, settings.run.seed)
    log.info("model %s", loaded.origin)
    if prompts is None and _on_terminal():
        from app.cli.prompt_loop import prompt_loop

        prompt_loop(
            lambda prompt, sampling: _write(loaded, prompt, sampling, arguments.stop), sampling
        )
        return
    prompts = [prompt_on_standard_input()] if prompts is None else prompts
    started = time.monotonic()
    if arguments.prompts or arguments.json:
        tokens = _answer(loaded, prompts, sampling, arguments)
    else:
        tokens = _write(loaded, prompts[0], sampling, arguments.stop)
    log.info("%.1f tokens/s", tokens / max(1e-9, time.monotonic() - started))


def _load(settings: Settings, arguments: argparse.Namespace) -> "LoadedModel":
    from app.generation.text import load_from_store, load_model

    device = settings.compute.device
    if arguments.model_dir:
        return load_model(arguments.model_dir, device)
    with scratch_folder(settings) as scratch:
        return load_from_store(existing_run(settings), arguments.step, device, scratch)


def _write(loaded: "LoadedModel", prompt: str, sampling: "Sampling", stops: list[str]) -> int:
    """Print the text as it comes. Returns how many tokens of it are new."""
    from app.generation.text import stream_text

    pieces = 0
    print(_shown(prompt), end="", flush=True)
    for piece in stream_text(loaded, prompt, sampling, stops):
        print(_shown(piece), end="", flush=True)
        pieces += 1
    print(flush=True)  # before the log's next line, which goes to another stream
    return pieces - 1  # the last piece is the rest of the text, not a token


def _answer(
    loaded: "LoadedModel",
    prompts: Sequence[str],
    sampling: "Sampling",
    arguments: argparse.Namespace,
) -> int:
    """Print the answers to several prompts. Returns how many tokens they have."""
    from app.generation.text import answers

    tokens = 0
    for answer in answers(loaded, prompts, sampling, arguments.stop):
        if arguments.json:
            print(json.dumps(vars(answer), ensure_ascii=False), flush=True)
        else:
            print(f"{_shown(answer.prompt + answer.text)}\n", flush=True)
        tokens += answer.tokens
    return tokens


def _shown(text: str) -> str:
    """A model may have learned escape sequences. A file gets what it wrote, a terminal does not."""
    return printable(text, keep="\n\t") if sys.stdout.isatty() else text


def _on_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
