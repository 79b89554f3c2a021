"""The process itself: its standard streams, which may go away, threads that nobody has to wait
for, and its end, which always comes."""

import contextlib
import io
import multiprocessing
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NoReturn, TypeVar

from app.errors import AppError
from app.failures import from_os_error

T = TypeVar("T")

_PATIENCE_SECONDS = 1.0  # for a log that is full
_SHARE_OF_TIME = 0.1  # of all time, that waiting for the log may take
_FLUSH_SECONDS = 5.0  # at the end


class _Log(io.FileIO):
    """A descriptor that takes everything. What the log's disk, pipe or terminal does not take is
    lost: a log is worth less than the work that it tells of.

    Where nobody reads it for now, a write waits a second, and those after it do not wait until it
    is read again. Only a thread that has the lock of the buffer above may write.
    """

    def __init__(self, descriptor: int) -> None:
        own = _opened_again(descriptor)
        super().__init__(descriptor if own is None else own, "w", closefd=own is not None)
        self._poll = select.poll()
        self._poll.register(self, select.POLLOUT)
        self._patience, self._waited_at = _PATIENCE_SECONDS, time.monotonic()
        self._unread = False  # it took nothing of the last write
        self._lost = 0  # lines, since somebody was last told
        self._cut = False  # the end of a line that is in the log was lost

    def write(self, data: Any) -> int:
        given = bytes(data)
        # A line that could not be ended is ended first, so that the next one stands alone.
        rest = b"\n" + given if self._cut and given[:1] != b"\n" else given
        while rest:
            # A pipe that is writable takes so many bytes without a wait, and maybe no more.
            piece = rest[: select.PIPE_BUF]
            try:
                written = super().write(piece) if self._takes_more() else None
            except OSError:
                break
            self._unread = not written
            if not written:
                self._lost += rest[-len(given) :].count(b"\n")
                break
            self._cut = piece[written - 1 : written] != b"\n" and written < len(rest)
            rest = rest[written:]
        return len(given)

    def lines_lost(self) -> int:
        """How many lines nobody read, once it is read again; 0 before, and 0 the next time."""
        lost = self._lost
        if lost == 0 or not self._poll.poll(0):
            return 0
        self._lost = 0
        return lost

    def _takes_more(self) -> bool:
        began = time.monotonic()
        earned = _SHARE_OF_TIME * (began - self._waited_at)
        self._patience = min(_PATIENCE_SECONDS, self._patience + earned)
        taken = bool(self._poll.poll(0 if self._unread else 1000 * self._patience))
        self._waited_at = time.monotonic()
        self._patience = max(0.0, self._patience - (self._waited_at - began))
        return taken


def _opened_again(descriptor: int) -> int | None:
    """A terminal once more, so that a write does not wait, and others' writes are as before.

    A terminal is called writable while it has room for a byte, and would wait for the others.
    """
    if not os.isatty(descriptor):
        return None
    flags = os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
    with contextlib.suppress(OSError):  # another user's, or of another container: it may wait
        return os.open(os.ttyname(descriptor), flags)
    return None


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
    sys.stderr = _text(_Log(2), sys.stderr, "backslashreplace")


def _text(raw: io.RawIOBase, former: Any, errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=former.encoding if former is not None else "utf-8",
        errors=errors,
        line_buffering=former is None or former.line_buffering,
        write_through=former is not None and former.write_through,
    )


def lines_lost(stream: Any) -> int:
    """See `_Log.lines_lost`; 0 for every other stream."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw.lines_lost() if isinstance(raw, _Log) else 0


def log_bytes(text: bytes) -> None:
    """Write to stderr itself, past every buffer and lock, as much as it takes."""
    with _Log(2) as log:
        log.write(text)


def in_background(work: Callable[[], T], name: str) -> Future[T]:
    """Call `work` in a thread that ends with the process, whatever it waits for."""
    outcome: Future[T] = Future()

    def call() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again by `result`
            outcome.set_exception(error)

    threading.Thread(target=call, name=name, daemon=True).start()
    return outcome


def end_process(code: int, patience: float = _FLUSH_SECONDS) -> NoReturn:
    """End with `code`, once what was printed is out, or `patience` seconds are over."""
    thread = threading.Thread(target=_flush, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no thread can be made
        _flush()
    else:
        thread.join(patience)
    leave(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AppError):  # told before, by whoever printed
            stream.flush()


def leave(code: int) -> NoReturn:
    """End with `code` at once, whatever thread or child is stuck.

    Python's own end would wait for the threads of an upload, and for processes that load data,
    which may hang. What they still do counts for nothing.
    """
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError, ValueError):  # it has ended meanwhile
            child.kill()
    os._exit(code)
