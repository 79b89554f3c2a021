"""`generate`: continue a prompt with a checkpoint, or with a Hugging Face model."""

import argparse
import logging
import sys
import time

from app.cli.arguments import Commands, count_from, number_between
from app.cli.chosen_step import add_step
from app.cli.named_run import existing_run, scratch_folder
from app.data.data_dir import DataDir
from app.printable import printable
from app.settings.combined import Settings
from app.training.preemption import StopRequest

log = logging.getLogger(__name__)

# The ids of all tokens are kept in memory; a higher number is a slip of the finger.
_MOST_TOKENS = 1_000_000


def add_commands(commands: Commands) -> None:
    command = commands.add("generate", generate, "continue a prompt with a checkpoint")
    command.add_argument("--prompt", default="", help="text to continue")
    add_step(command, "the newest valid one", "--checkpoint")
    command.add_argument(
        "--model_dir", metavar="DIR", help="a Hugging Face directory or hub id instead"
    )
    command.add_argument(
        "--temperature", type=number_between(0, 100), default=0.8, help="0: greedy"
    )
    command.add_argument("--top_k", type=count_from(0), default=50, help="0: all tokens")
    command.add_argument("--top_p", type=number_between(0, 1), default=0.95, help="1: all tokens")
    command.add_argument(
        "--repetition_penalty", type=number_between(0.01, 100), default=1.0, help="1: none"
    )
    command.add_argument(
        "--max_tokens",
        type=count_from(1, _MOST_TOKENS),
        default=100,
        help=f"length of the continuation, at most {_MOST_TOKENS:,}",
    )


def generate(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    DataDir(settings.data.data_dir).take_temporary_files()
    from app.generation.decoding import Sampling
    from app.generation.text import load_from_store, load_model, stream_text

    sampling = Sampling(
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        repetition_penalty=arguments.repetition_penalty,
        max_tokens=arguments.max_tokens,
        seed=settings.run.seed,
    )
    device = settings.compute.device
    if arguments.model_dir:
        loaded = load_model(arguments.model_dir, device)
    else:
        with scratch_folder(settings) as scratch:
            store = existing_run(settings)
            loaded = load_from_store(store, arguments.step, device, scratch)
    log.info("model %s", loaded.origin)
    started, pieces = time.monotonic(), 0
    # A model may have learned escape sequences. A file gets what it wrote, a terminal does not.
    on_terminal = sys.stdout.isatty()
    print(arguments.prompt, end="", flush=True)
    for piece in stream_text(loaded, arguments.prompt, sampling):
        print(printable(piece, keep="\n\t") if on_terminal else piece, end="", flush=True)
        pieces += 1
    print(flush=True)  # before the log's next line, which goes to another stream
    tokens = pieces - 1  # the last piece is the rest of the text, not a token
    log.info("%.1f tokens/s", tokens / max(1e-9, time.monotonic() - started))
