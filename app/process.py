"""The process itself: its standard streams, which may go away, and its end, which always comes."""

import contextlib
import io
import multiprocessing
import os
import sys
from typing import Any, NoReturn

from app.errors import AppError
from app.failures import from_os_error


class _Log(io.FileIO):
    """A descriptor that takes everything. What the log's disk, pipe or terminal does not take is
    lost: a log is worth less than the work that it tells of."""

    def write(self, data: Any) -> int:
        try:
            written: int | None = super().write(data)
        except OSError:
            written = None
        return memoryview(data).nbytes if written is None else written


class _Output(io.FileIO):
    """The descriptor of what a command was asked for. It may not get lost, so a failure is told."""

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise from_os_error(error, "the standard output") from error


def keep_standard_streams() -> None:
    """Let stderr take everything, and let stdout show ? for a character that it does not have.

    A stream that is closed becomes /dev/null: otherwise the first file that is opened gets its
    number, and with it whatever a library prints.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = _text(_Output(1, "w", closefd=False), sys.stdout, "replace")
    sys.stderr = _text(_Log(2, "w", closefd=False), sys.stderr, "backslashreplace")


def _text(raw: io.RawIOBase, former: Any, errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=former.encoding if former is not None else "utf-8",
        errors=errors,
        line_buffering=former is None or former.line_buffering,
        write_through=former is not None and former.write_through,
    )


def end_process(code: int) -> NoReturn:
    """End with `code`, once what was printed is out."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AppError):  # told before, by whoever printed
            stream.flush()
    leave(code)


def leave(code: int) -> NoReturn:
    """End with `code` at once, whatever thread or child is stuck.

    Python's own end would wait for the threads of an upload, and for processes that load data,
    which may hang. What they still do counts for nothing.
    """
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError, ValueError):  # it has ended meanwhile
            child.kill()
    os._exit(code)
