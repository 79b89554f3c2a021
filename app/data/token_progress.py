"""Shows how far the tokens are: with a bar on a terminal, with lines in the log elsewhere."""

import logging
import time

from tqdm import tqdm

from app.console import counted, duration, on_terminal
from app.data.token_need import PrepareProgress
from app.heartbeat import beat

log = logging.getLogger(__name__)

_LINE_SECONDS = 2.0  # between two lines while somebody waits for tokens
_LINE_SECONDS_BEHIND = 60.0  # between two lines while the training goes on


class TokenProgress:
    """Whoever waits for tokens calls `waiting`, a few times a second, and `arrived` in the end. The
    preparation calls `behind`, and whatever reads the source calls `alive`."""

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None
        self._since: float | None = None
        self._behind = False
        self._last_line = time.monotonic()
        self._seen: PrepareProgress | None = None
        self._said: PrepareProgress | None = None

    def waiting(self, progress: PrepareProgress) -> None:
        """Somebody can do nothing but wait for tokens. Progress since the last call is a sign of
        life."""
        self._behind = False
        now = time.monotonic()
        if self._since is None:
            self._since, self._last_line = now, now - _LINE_SECONDS / 2
        if progress != self._seen:
            self._seen = progress
            beat()
        if on_terminal():
            self._draw(progress)
        elif (
            _says_something(progress)
            and progress != self._said
            and now - self._last_line >= _LINE_SECONDS
        ):
            self._last_line, self._said = now, progress
            log.info("preparing data: %s", describe(progress))

    def alive(self) -> None:
        """Bytes of the source came in. That is a sign of life until the first tokens are there,
        and while somebody waits. While the training goes on it is none: it would hide that the
        training hangs."""
        if not self._behind:
            beat()

    def behind(self, progress: PrepareProgress) -> None:
        """The preparation goes on, and nobody waits for it."""
        now = time.monotonic()
        due = self._since is None and now - self._last_line >= _LINE_SECONDS_BEHIND
        if due and _says_something(progress):
            self._last_line = now
            log.info("preparing data behind the training: %s", describe(progress))

    def arrived(self) -> float:
        """The tokens are there. Returns the seconds for which they were waited for."""
        started, self._since = self._since, None
        self._seen, self._behind = None, True
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        return 0.0 if started is None else time.monotonic() - started

    def _draw(self, progress: PrepareProgress) -> None:
        if self._bar is None:
            self._bar = tqdm(desc="preparing", unit=" tokens", unit_scale=True, leave=False)
            self._bar.initial = progress.tokens
        # The bar has no total, since the source may end before it: tqdm would draw a share of it.
        # It has only one note, since tqdm does not shorten a line without a total: with two notes
        # the line would wrap at 80 columns.
        note = _time_left(progress) or _enough(progress)
        if progress.shards_total:
            note = f"shards fetched {progress.shards_fetched}/{progress.shards_total}"
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(progress.tokens - self._bar.n)


def describe(progress: PrepareProgress) -> str:
    """One phrase for the log. Nobody knows how long the source is before its end, so what the
    phrase says about the rest is an upper limit."""
    if progress.shards_total:
        return f"{progress.shards_fetched:,} of {progress.shards_total:,} shards fetched"
    if not progress.documents and not progress.tokens:
        return "reading the first documents"
    phrase = f"{counted(progress.documents, 'document')}, {progress.tokens:,} tokens"
    enough = _enough(progress)
    phrase += f", {enough}" if enough else ""
    if progress.tokens_made:
        phrase += f" | {progress.tokens_per_second:,.0f} tokens/s"
    time_left = _time_left(progress)
    return phrase + (f" | {time_left}" if time_left else "")


def _enough(progress: PrepareProgress) -> str:
    total = progress.tokens_total
    return f"{total:,} are enough" if total is not None and total > progress.tokens else ""


def _time_left(progress: PrepareProgress) -> str:
    left = (progress.tokens_total or 0) - progress.tokens
    if left <= 0 or not progress.tokens_made:
        return ""
    return f"at most {duration(left / max(1.0, progress.tokens_per_second))} at this speed"


def _says_something(progress: PrepareProgress) -> bool:
    """Whether there is news: once all tokens are made, only shards that are fetched are news."""
    return not progress.complete or progress.shards_total > 0
