"""The command line: `python -m app COMMAND`, every variable a flag in lower case."""

import argparse
import difflib
import logging
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from app.cli import checkpoints as commands
from app.console import setup_logging
from app.errors import EXIT_INTERRUPTED, EXIT_OK, AppError, Preempted, UsageError
from app.settings.load import Settings, load_settings
from app.settings.variables import SECTIONS, variables
from app.training.preemption import NOTHING_TO_SAVE, Interrupted, StopRequest

Handler = Callable[[Settings, argparse.Namespace, StopRequest], None]

log = logging.getLogger(__name__)

_EXIT_CODES = """\
exit codes: 0 done; 64 bad command line; 75 store or data unreachable, try again;
77 access denied; 78 configuration or input; 79 another writer holds the run;
143 stopped by a signal, checkpoint committed; 1 a bug"""
# All their ids are kept. More is a slip of the finger.
_MOST_TOKENS = 1_000_000


class _Parser(argparse.ArgumentParser):
    """Reports problems as UsageError, with the nearest known word."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see: python -m app --help)")


def main(argv: Sequence[str]) -> int:
    """Run one command and return the exit code."""
    setup_logging("text")
    stop = StopRequest()
    stop.install()
    handler: Handler | None = None
    try:
        arguments = _parse(argv)
        flags = {
            variable.name.lower(): value
            for variable in variables()
            if (value := getattr(arguments, variable.name.lower(), None)) is not None
        }
        settings = load_settings(flags)
        setup_logging(settings.logs.log_format)
        handler = arguments.handler
        arguments.handler(settings, arguments, stop)
    except Interrupted:
        log.warning(NOTHING_TO_SAVE if handler is commands.train else "stopped")
        return Preempted.exit_code
    except Preempted as end:
        log.warning("%s", end)
        return end.exit_code
    except AppError as error:
        for line in str(error).splitlines():
            log.error("%s (exit %d)", line, error.exit_code)
        return error.exit_code
    except KeyboardInterrupt:
        log.warning("interrupted twice: ended at once, without a last checkpoint")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # `generate | head` is fine. Training prints nothing that a reader could refuse.
        if handler is commands.train:
            raise
        return EXIT_OK
    finally:
        stop.taken()
    return EXIT_OK


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = [variable.flag for variable in variables()]
        nearest = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise UsageError(f"unknown argument {unknown[0]}{hint} (see: python -m app --help)")
    return arguments


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m app",
        description="Trains SmolLM2 from scratch, on machines that can vanish at any moment.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shared = _settings_flags()
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def add(
        name: str, handler: Handler, text: str, within: Any = subparsers
    ) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = within.add_parser(
            name, help=text, description=text, parents=[shared], allow_abbrev=False
        )
        command.set_defaults(handler=handler)
        return command

    add("train", commands.train, "train, or continue, the run that the settings name")
    prepare = add("prepare", commands.prepare, "tokenize the dataset without training")
    prepare.add_argument(
        "--all", action="store_true", help="the whole dataset, not only what the run needs"
    )
    prepare.add_argument("--tokenizer_only", metavar="DIR", help="only train the builtin tokenizer")
    generate = add("generate", commands.generate, "continue a prompt with a checkpoint")
    _add_generate_arguments(generate)
    checkpoints = subparsers.add_parser("checkpoints", help="list, pull or verify checkpoints")
    verbs = checkpoints.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)
    listing = add(
        "list", commands.list_checkpoints, "show the checkpoints and the attempts of a run", verbs
    )
    listing.add_argument("--json", action="store_true", help="as JSON")
    pull = add("pull", commands.pull_checkpoint, "copy a verified checkpoint here", verbs)
    pull.add_argument("checkpoint", nargs="?", help="step or name; default: the newest")
    pull.add_argument("--to", metavar="DIR", help="folder to create; default: RUN-step-N")
    pull.add_argument("--weights_only", action="store_true", help="leave the optimizer out")
    verify = add(
        "verify",
        commands.verify_checkpoints,
        "check every byte of every checkpoint, and that none is missing",
        verbs,
    )
    verify.add_argument("checkpoint", nargs="?", help="step or name; default: all")
    for verb in (listing, verify):
        verb.add_argument(
            "--attempts", type=_count(0), default=10, help="how many attempts to show; default: 10"
        )
    report = add("report", commands.report, "write a page with the curves and attempts of a run")
    report.add_argument("--to", metavar="FILE", help="page to write; default: RUN-report.html")
    data = subparsers.add_parser("data", help="look at the prepared tokens")
    _add_data_verbs(data.add_subparsers(metavar="VERB", required=True, parser_class=_Parser), add)
    config = add("config", commands.config, "show every variable, its value and its source")
    config.add_argument("--markdown", action="store_true", help="the README's table")
    add("health", commands.health, "exit 0 while the job in this container makes progress")
    return parser


def _settings_flags() -> argparse.ArgumentParser:
    """A parent parser with one flag for each variable, grouped by section."""
    shared = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    groups = {name: shared.add_argument_group(f"{name} settings") for name in SECTIONS}
    for variable in variables():
        text = (variable.info.description or "").replace("%", "%%")
        groups[variable.section].add_argument(
            variable.flag, metavar=variable.unit.upper() or "VALUE", help=text
        )
    return shared


def _add_data_verbs(verbs: Any, add: Callable[..., argparse.ArgumentParser]) -> None:
    show = add("show", commands.show_data, "print the text that a step sees", verbs)
    show.add_argument(
        "--step", type=_count(1), required=True, help="from 1, as the log counts them"
    )
    show.add_argument("--rank", type=_count(0), default=0, help="of the processes; default: 0")
    show.add_argument(
        "--world_size", type=_count(1), default=1, help="how many processes; default: 1"
    )
    show.add_argument("--micro_step", type=_count(0), help="from 0; default: all of the step")
    stats = add("stats", commands.data_statistics, "count documents, tokens and bytes", verbs)
    for verb in (show, stats):
        verb.add_argument("--json", action="store_true", help="as JSON")


def _add_generate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", default="", help="text to continue")
    parser.add_argument("--checkpoint", help="step or name; default: the newest valid one")
    parser.add_argument(
        "--model_dir", metavar="DIR", help="a Hugging Face directory or hub id instead"
    )
    parser.add_argument("--temperature", type=_number(0, 100), default=0.8, help="0: greedy")
    parser.add_argument("--top_k", type=_count(0), default=50, help="0: all tokens")
    parser.add_argument("--top_p", type=_number(0, 1), default=0.95, help="1: all tokens")
    parser.add_argument(
        "--repetition_penalty", type=_number(0.01, 100), default=1.0, help="1: none"
    )
    parser.add_argument(
        "--max_tokens",
        type=_count(1, _MOST_TOKENS),
        default=100,
        help=f"length of the continuation, at most {_MOST_TOKENS:,}",
    )


def _number(low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low:g} and {high:g}")
        return value

    return number


def _count(low: int, high: int | None = None) -> Callable[[str], int]:
    def count(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"{text} is below {low}")
        if high is not None and value > high:
            raise argparse.ArgumentTypeError(f"{text} is above {high:,}")
        return value

    return count
