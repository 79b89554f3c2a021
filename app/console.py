"""What a person or a log collector sees: one line per event, or a bar on a terminal."""

import json
import logging
import os
import re
import sys
from datetime import UTC, datetime
from functools import partial
from typing import Any

from tqdm import tqdm

from app.printable import printable
from app.process import lines_lost

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}
_NO_SECRETS = "list-type|prefix|delimiter|max-keys|encoding-type|uploads|partNumber|x-id"


class _Handler(logging.StreamHandler[Any]):
    """Writes above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if lost := lines_lost(self.stream):
                text = f"{counted(lost, 'line')} of the log lost: nobody read it for a while"
                gap = logging.LogRecord(__name__, logging.WARNING, "", 0, text, None, None)
                tqdm.write(self.format(gap), file=self.stream)
            # One write, so that no line of another process, whose log this is too, gets into it.
            tqdm.write(f"{self.format(record)}\n", file=self.stream, end="")
            self.flush()
        except (OSError, ValueError):
            self.handleError(record)


class TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        level = "" if record.levelno <= logging.INFO else f"{record.levelname}: "
        # The lines of a traceback are indented: none of them looks like a line of the log.
        trace = self.formatException(record.exc_info).split("\n") if record.exc_info else []
        lines = [record.getMessage(), *(f"  {line}" for line in trace)]
        return f"{moment} {level}" + "\n".join(printable(redacted(line)) for line in lines)


class JsonFormatter(logging.Formatter):
    """One JSON object per line; numbers of a step are fields of their own."""

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": redacted(record.getMessage()),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            event["exception"] = redacted(self.formatException(record.exc_info))
        return json.dumps(event)


def setup_logging(log_format: str, log_level: str = "info", rank: int = 0) -> None:
    """Send the project's log to stderr; libraries only speak from warnings on.

    Whatever is no name of a form or of a level counts as `text` and `info`.

    Of the processes that train a run together only rank 0 says what all do. The others warn, and
    each of their lines says whose it is.
    """
    handler = _Handler(sys.stderr)
    if rank:
        handler.addFilter(partial(_with_rank, rank))
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    least = _LEVELS.get(log_level, logging.INFO)
    logging.getLogger("app").setLevel(max(least, logging.WARNING) if rank else least)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.ERROR)


def _with_rank(rank: int, record: logging.LogRecord) -> bool:
    record.msg, record.args = f"[rank {rank}] {record.getMessage()}", None
    return True


def on_terminal() -> bool:
    """Whether somebody sees a bar. `docker run --tty` gives a terminal that is 0 columns wide."""
    return terminal_columns() > 0


def terminal_columns() -> int:
    """How wide the terminal is that the log goes to; 0 if it goes to none."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns if sys.stderr.isatty() else 0
    except (OSError, ValueError):  # it has gone away
        return 0


def duration(seconds: float) -> str:
    """1:02:03, or 2:03 under an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def counted(number: int, noun: str, plural: str = "") -> str:
    """1 save, 2 saves; 1 try, 2 tries."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def size(n_bytes: float) -> str:
    """1.6 GB, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def redacted(text: str) -> str:
    """`text` without user:password and query values of URIs, and without token-like words.

    A password may hold any sign. So what looks like a port counts as one, and what stands before
    the last @ of the word is left out, unless another URI begins in between. What S3 is asked for
    in a listing or an upload is no secret, and says which request an error is about.
    """
    text = re.sub(r"//(?:[^/@\s]*:(?:(?!://)\S)*|[^/\s]*)@", "//***@", text)
    secret = rf"([?&](?!(?:{_NO_SECRETS})=)[A-Za-z0-9_.~%-]+=)[^&\s'\"]+"
    text = re.sub(secret, r"\1***", text)
    return re.sub(r"\b(hf_|AKIA|ASIA|IQoJ|FwoG)[A-Za-z0-9+/=_-]{8,}", r"\1***", text)
