"""The sections of the page below the curves: attempts, checkpoints, samples."""

from itertools import pairwise

from app.console import duration, size
from app.observe.history import KINDS, kind_of
from app.observe.markup import ago, moment, seconds_of, table, text
from app.observe.reported_run import ReportedCheckpoint, ReportedRun
from app.run.journal import AttemptRecord
from app.run.view import CheckpointState

_SHOWN_SAMPLES = 5
_LONGEST_SAMPLE = 2_000  # characters


def attempts(run: ReportedRun) -> str:
    """The timeline and the table of attempts."""
    if not run.attempts:
        return ""
    lost = {before.epoch: after.steps_lost for before, after in pairwise(run.attempts)}
    running = {span.attempt.epoch for span in run.spans if span.kind == "running"}
    columns = ("", "attempt", "started (UTC)", "ran", "from", "to", "lost", "1st step", "saves",
               "failed", "stall", "ended")  # fmt: skip
    rows = [
        _attempt_row(attempt, lost.get(attempt.epoch), attempt.epoch in running)
        for attempt in run.attempts
    ]
    kinds = {"lost": "steps that were lost", **KINDS}
    shown = {span.kind for span in run.spans} | (
        {"lost"} if any(s.lost for s in run.spans) else set()
    )
    legend = " ".join(
        f'<span><i class="{kind}"></i>{text(words)}</span>'
        for kind, words in kinds.items()
        if kind in shown
    )
    return (
        f"<h2>Attempts</h2>{_timeline(run)}"
        f'<p class="legend">{legend} <span><i class="idle"></i>idle</span></p>'
        f"{table(columns, rows, 'attempts')}"
        '<p class="quiet">lost: steps behind the last checkpoint, made again by the next attempt. '
        "1st step: from the start of the process, in seconds. stall: how long saving held training "
        "up, in seconds. Dashed lines in the curves: an attempt went on from here.</p>"
    )


def _attempt_row(attempt: AttemptRecord, lost: int | None, running: bool) -> list[str]:
    first = attempt.seconds_to_first_step
    kind = "running" if running else kind_of(attempt)
    cells = (
        str(attempt.epoch),
        attempt.started_at[:19].replace("T", " "),
        duration(attempt.seconds),
        f"{attempt.start_step:,}",
        f"{attempt.step:,}",
        "–" if lost is None else f"{lost:,}",
        "–" if first is None else f"{first:.1f}",
        str(attempt.saves),
        str(attempt.failed_saves),
        f"{attempt.stall_seconds:.2f}",
        "running" if running else attempt.ended or KINDS["unknown"],
    )
    return [f'<i class="{kind}"></i>', *map(text, cells)]


def _timeline(run: ReportedRun) -> str:
    """One bar for each attempt, from its start to its end; in the gaps nothing was trained."""
    spans = run.spans
    if not spans:
        return ""
    began = spans[0].start
    whole = max(1.0, max(span.end for span in spans) - began)
    bars = []
    for span in spans:
        x, width = 1000 * (span.start - began) / whole, 1000 * (span.end - span.start) / whole
        title = f"attempt {span.attempt.epoch}: {span.attempt.ended or KINDS[span.kind]}"
        bars.append(
            f'<rect class="{span.kind}" x="{x:.1f}" y="0" height="20" '
            f'width="{max(2.0, width - 0.5):.1f}"><title>{text(title)}</title></rect>'
        )
        if span.lost > 0:
            part = 1000 * span.lost / whole
            bars.append(
                f'<rect class="lost" x="{x + width - part:.1f}" y="0" height="20" '
                f'width="{max(1.0, part - 0.5):.1f}"><title>lost</title></rect>'
            )
    first, last = (moment(at)[:16] for at in (began, began + whole))
    return (
        '<svg class="timeline" viewBox="0 0 1000 20" preserveAspectRatio="none" role="img" '
        f'aria-label="timeline of {len(spans)} attempts from {first} to {last} UTC">'
        f"{''.join(bars)}</svg>"
        f'<p class="ends"><span>{first}</span><span>{duration(whole)} in all</span>'
        f"<span>{last} UTC</span></p>"
    )


def checkpoints(run: ReportedRun) -> str:
    """The newest checkpoints with age, size and state, and those that were set aside."""
    if not run.checkpoints:
        return ""
    columns = ("", "step", "attempt", "saved (UTC)", "age", "size", "train loss", "state")
    rows = [_checkpoint_row(run, checkpoint) for checkpoint in run.checkpoints]
    return (
        f"<h2>Checkpoints</h2>{table(columns, rows, 'checkpoints')}"
        '<p class="quiet">Sizes are compared with the manifest; <code>checkpoints verify</code> '
        "reads every byte.</p>"
    )


def _checkpoint_row(run: ReportedRun, checkpoint: ReportedCheckpoint) -> list[str]:
    at = seconds_of(checkpoint.created_at or "")
    kind = "done" if checkpoint.whole else "unknown"
    state = checkpoint.state
    if state.startswith("damaged"):
        kind = "failed"
    lease = run.lease
    unfinished = state == CheckpointState.UNFINISHED.value
    if unfinished and run.alive and lease and lease.epoch == checkpoint.name.epoch:
        kind, state = "running", "being saved"
    cells = (
        f"{checkpoint.name.step:,}",
        str(checkpoint.name.epoch),
        "–" if at is None else moment(at),
        "–" if at is None else ago(run.read_at - at),
        size(checkpoint.size),
        "–" if checkpoint.train_loss is None else f"{checkpoint.train_loss:.4f}",
        state,
    )
    return [f'<i class="{kind}"></i>', *map(text, cells)]


def samples(run: ReportedRun) -> str:
    """The newest samples, the newest first."""
    if not run.samples:
        return ""
    newest = list(run.samples)[: -_SHOWN_SAMPLES - 1 : -1]
    figures = "".join(
        f"<figure><figcaption>step {sample.step:,}</figcaption>"
        f"<pre>{text(sample.text, _LONGEST_SAMPLE, keep=chr(10))}</pre></figure>"
        for sample in newest
    )
    return f'<h2>Samples</h2><section class="samples">{figures}</section>'
