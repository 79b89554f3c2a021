"""`generate` on a terminal: one prompt after the other, to a model that stays in memory."""

import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterator

from app.cli.sampling import changed
from app.errors import Cancelled
from app.generation.decoding import Sampling
from app.printable import show

_HINT = "A line is continued as a text. /temperature 0.5 changes how; an empty line or /quit ends."


def prompt_loop(write: Callable[[str, Sampling], object], sampling: Sampling) -> None:
    """Let `write` continue each line that is typed, until an empty line, /quit or Ctrl-D.

    The seed is one higher for each line, so that the same line gets another text the next time.
    Ctrl-C ends the text that is being written, or takes back the line that is being typed. A second
    one at an empty prompt raises Cancelled.
    """
    with contextlib.suppress(ImportError):  # it lets `input` edit a line, and remember the former
        import readline  # noqa: F401
    show(_HINT)
    with _ctrl_c_is_ours():
        cancelled = False
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                if cancelled:
                    raise Cancelled from None
                show("Ctrl-C once more ends, as do Ctrl-D and /quit")
                cancelled = True
                continue
            cancelled = False
            if line in ("", "/quit"):
                return
            if line.startswith("/"):
                sampling = _set(sampling, line)
                continue
            try:
                write(line, sampling)
            except KeyboardInterrupt:
                print()
            sampling = dataclasses.replace(sampling, seed=sampling.seed + 1)


def _set(sampling: Sampling, line: str) -> Sampling:
    name, _, text = line[1:].partition(" ")
    try:
        sampling = changed(sampling, name, text.strip())
    except ValueError as error:
        show(str(error))
    return sampling


@contextlib.contextmanager
def _ctrl_c_is_ours() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt each time. Other signals end the process as before."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
