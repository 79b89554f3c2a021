"""The attempts of a run in time: when each of them ran, and what of it was lost."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.observe.markup import seconds_of
from app.run.journal import TARGET_REACHED, AttemptRecord

_LONGEST_ATTEMPT = 1e9  # seconds

KINDS = {
    "running": "running",
    "done": TARGET_REACHED,
    "stopped": "asked to stop",
    "failed": "ended with an error",
    "unknown": "no end recorded: killed, or still running",
}


@dataclass(frozen=True)
class Span:
    """An attempt from `start` to `end`, in Unix seconds. What it made in the last `lost` seconds
    was lost, and made again by the next attempt."""

    attempt: AttemptRecord
    start: float
    end: float
    lost: float
    kind: str


def spans_of(attempts: Sequence[AttemptRecord], running: int | None, alive_at: float) -> list[Span]:
    """The spans of `attempts`, by start, where the records say plausible times.

    `running` is the epoch of the attempt that still runs, if there is one, and `alive_at` when it
    last showed that it lives.
    """
    known = [(seconds_of(a.started_at), a) for a in attempts if a.seconds < _LONGEST_ATTEMPT]
    begun = sorted(
        ((start, a) for start, a in known if start is not None), key=lambda found: found[0]
    )
    spans = []
    for index, (start, attempt) in enumerate(begun):
        following = begun[index + 1] if index + 1 < len(begun) else None
        if attempt.epoch == running and attempt.ended is None and following is None:
            end = min(max(start + attempt.seconds, alive_at), start + _LONGEST_ATTEMPT)
            spans.append(Span(attempt, start, end, 0.0, "running"))
            continue
        recorded = max(0, attempt.steps)
        kept = made = recorded
        latest = start + attempt.seconds
        if following is not None:
            after = following[1]
            kept = max(0, after.start_step - attempt.start_step)
            made = max(recorded, kept + after.steps_lost)
        per_step = attempt.seconds / recorded if recorded else 0.0
        end = latest + per_step * (made - recorded)
        if following is not None:
            end = max(start, min(end, max(latest, following[0])))
        lost = min(end - start, per_step * max(0, made - kept))
        spans.append(Span(attempt, start, end, lost, kind_of(attempt)))
    return spans


def kind_of(attempt: AttemptRecord) -> str:
    if attempt.ended is None:
        return "unknown"
    if attempt.ended.startswith("exit 143"):
        return "stopped"
    return "done" if attempt.ended.startswith(TARGET_REACHED) else "failed"
