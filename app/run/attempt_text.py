"""Attempts as lines for a terminal."""

from collections.abc import Sequence

from app.console import counted, duration
from app.run.journal import AttemptRecord


def summary(record: AttemptRecord) -> str:
    """The line that an attempt ends with."""
    line = f"attempt {record.epoch}: {counted(record.steps, 'step')} in {duration(record.seconds)}"
    share = 100 * record.stall_seconds / max(1e-9, record.seconds)
    line += (
        f"; {counted(record.saves, 'save')} held training up for {record.stall_seconds:.2f} s "
        f"({share:.2f} %)"
    )
    if record.commits:
        which = "it" if record.saves == 1 else "one" if record.commits == 1 else "the slowest"
        line += f", {which} was in the store after {record.longest_upload_lag:.1f} s"
    if record.failed_saves:
        line += f"; {counted(record.failed_saves, 'try', 'tries')} to save failed"
    return line


def attempt_table(records: Sequence[AttemptRecord]) -> list[str]:
    """Lines for a terminal. Durations in seconds; `lag` is from a snapshot to its commit."""
    columns = ("from", "steps", "lost", "1st step", "saves", "failed", "stall", "lag")
    lines = [f"{'attempt':>7} {'started':<19} {' '.join(f'{c:>8}' for c in columns)}  ended"]
    for record in records:
        first = record.seconds_to_first_step
        cells = (
            str(record.start_step),
            str(record.steps),
            str(record.steps_lost),
            "-" if first is None else f"{first:.1f} s",
            str(record.saves),
            str(record.failed_saves),
            f"{record.stall_seconds:.2f} s",
            f"{record.longest_upload_lag:.1f} s",
        )
        ended = record.ended or "no end recorded: killed, or still running"
        lines.append(
            f"{record.epoch:>7} {record.started_at[:19]:<19} "
            f"{' '.join(f'{cell:>8}' for cell in cells)}  {ended}"
        )
    return lines
