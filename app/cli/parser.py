"""The command line: `python -m app COMMAND`, every variable a flag in lower case."""

import argparse
import difflib
import logging
import sys
from collections.abc import Sequence

from app.cli import (
    changes,
    checkpoints,
    completion,
    config,
    data,
    evaluate,
    export,
    generate,
    plan,
    prepare,
    report,
    run,
    train,
)
from app.cli.arguments import Commands, Handler, Parser, settings_flags
from app.console import setup_logging
from app.errors import EXIT_INTERRUPTED, EXIT_OK, AppError, Preempted, UsageError
from app.settings.load import load_settings, wanted_log
from app.settings.variables import variables
from app.training.preemption import NOTHING_TO_SAVE, Interrupted, StopRequest

log = logging.getLogger(__name__)

_EXIT_CODES = """\
exit codes: 0 done; 64 bad command line; 75 store or data unreachable, try again;
77 access denied; 78 configuration or input; 79 another process took the run over;
143 stopped by a signal, checkpoint committed;
130 Ctrl-C at a question, or for the second time; 1 a bug"""
# Each module adds its own commands. `--help` lists them in this order.
_COMMANDS = (
    train,
    prepare,
    generate,
    evaluate,
    checkpoints,
    export,
    changes,
    run,
    report,
    plan,
    data,
    config,
)


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
        setup_logging(*wanted_log(flags))
        settings = load_settings(flags)
        handler = arguments.handler
        arguments.handler(settings, arguments, stop)
        sys.stdout.flush()  # here, where a failure can still be told
    except Interrupted:
        log.warning(NOTHING_TO_SAVE if handler is train.train else "stopped")
        return Preempted.exit_code
    except Preempted as end:
        for line in end.args:  # none where another process says it
            log.warning("%s", line)
        return end.exit_code
    except AppError as error:
        for line in error.args:
            log.error("%s (exit %d)", line, error.exit_code)
        log.debug("where that came from:", exc_info=True)
        return error.exit_code
    except KeyboardInterrupt:
        log.warning("interrupted twice: ended at once, without a last checkpoint")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        if handler is train.train:  # it prints nothing: this came from somewhere else
            return _bug()
        return EXIT_OK  # `generate | head` is fine
    except SystemExit:
        if handler is None:  # argparse, which has printed what was asked for
            raise
        return _bug()  # a library's: no end of a command, whatever its code says
    except BaseException:  # noqa: BLE001 - told, with its traceback
        return _bug()
    finally:
        stop.taken()
    return EXIT_OK


def _bug() -> int:
    log.exception("this is a bug of the job, please report it with these lines")
    return AppError.exit_code


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = [variable.flag for variable in variables()]
        nearest = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise UsageError(f"unknown argument {unknown[0]}{hint} (see: python -m app --help)")
    return arguments


def _parser() -> Parser:
    parser = Parser(
        prog="python -m app",
        description="Trains SmolLM2 from scratch, on machines that can vanish at any moment.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = Commands(parser, settings_flags(), "COMMAND")
    for module in _COMMANDS:
        module.add_commands(commands)
    completion.add_commands(commands, parser)
    return parser
