"""Pieces of a page: whatever comes from a store becomes text, and never markup."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape

from app.console import duration
from app.printable import printable

_LONGEST_TEXT = 300


def text(content: str, longest: int = _LONGEST_TEXT, keep: str = "") -> str:
    """Any text, made safe and short enough for the page. Unprintable signs but those of `keep`
    are shown as Python writes them: none of them turns the direction of the page around."""
    content = printable(content, keep)
    return escape(content if len(content) <= longest else f"{content[: longest - 1]}…")


def fact(name: str, value: str, note: str) -> str:
    return f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd><dd>{text(note)}</dd></div>"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], name: str) -> str:
    """`rows` are cells of markup, `columns` are texts. A table that is too wide scrolls within
    itself, also with the keyboard; `name` is read out for it."""
    head = "".join(f'<th scope="col">{text(column)}</th>' for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="wide" role="region" aria-label="{text(name)}" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def moment(unix: float) -> str:
    """2026-01-01 00:00:00, in UTC; another clock may be so wrong that no calendar has its time."""
    try:
        return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"{unix:,.0f} s after 1970"


def seconds_of(iso: str) -> float | None:
    """Unix seconds of a time as records write it; None where it is none that can be meant."""
    try:
        parsed = datetime.fromisoformat(iso)
        seconds = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
    return seconds if seconds >= 0 else None


def ago(seconds: float) -> str:
    """0:12 ago, or 3 d ago; a clock that is behind says 0:00."""
    seconds = max(0.0, seconds)
    return f"{seconds / 86_400:,.0f} d ago" if seconds >= 2 * 86_400 else f"{duration(seconds)} ago"
