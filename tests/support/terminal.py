"""A command on a terminal of its own, at which a test types."""

import os
import pty
import select
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

CTRL_C, CTRL_D, UP, ENTER = "\x03", "\x04", "\x1b[A", "\r"
_PATIENCE = 60.0  # seconds
_AGAIN = 2.0  # seconds, before a key is pressed again


class Terminal:
    """The command is the leader of its session, so that a key like Ctrl-C becomes a signal."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], cwd: Path) -> None:
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            os.execve(command[0], list(command), dict(environment))
        self.said = b""
        self._read, self._ended = 0, False

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def until(self, text: str) -> str:
        """What it shows up to `text`, from the end of the last call on. Fails if it ends before."""
        wanted = text.encode()
        while (place := self.said.find(wanted, self._read)) < 0:
            assert self._more(_PATIENCE), f"no {text!r} in {self.said[self._read :]!r}"
        begin, self._read = self._read, place + len(wanted)
        return self.said[begin : self._read].decode("utf-8", "replace")

    def press_until(self, key: str, text: str) -> str:
        """As `until`, of what it shows once a key is pressed, and pressed again if nothing happens:
        a signal that comes between the prompt and the wait for a key is only looked at then."""
        self.type(key)
        while self.said.find(text.encode(), self._read) < 0:
            if not self._more(_AGAIN):
                self.type(key)
        return self.until(text)

    def end(self, ask: Callable[[], object] | None = None) -> int:
        """The exit code, once it has ended; `ask` asks it to, again and again as in
        `press_until`."""
        if ask:
            ask()
        while not self._ended:
            if not self._more(_AGAIN if ask else _PATIENCE) and not self._ended:
                assert ask, f"it does not end: {self.said!r}"
                ask()
        _, status = os.waitpid(self.pid, 0)
        os.close(self._descriptor)
        return os.waitstatus_to_exitcode(status)

    def _more(self, seconds: float) -> bool:
        """Whether it has said something more within so many seconds."""
        ready, _, _ = select.select([self._descriptor], [], [], seconds)
        if not ready:
            return False
        try:
            more = os.read(self._descriptor, 65536)
        except OSError:  # Linux: nobody has the other side open
            more = b""
        self._ended = not more
        self.said += more
        return bool(more)
