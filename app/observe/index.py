"""The list of runs, and what is shown where there is no run to show."""

from collections.abc import Sequence

from app.observe.listed import RunLine
from app.observe.markup import table, text
from app.observe.report import Served, document, path_of

_MOST_LINES = 100


def index(uri: str, lines: Sequence[RunLine], served: Served) -> str:
    """A page with a link to each of the newest runs below `uri`."""
    rows = [
        (
            f'<i class="{line.activity.kind}"></i>',
            f'<a href="{path_of(line.name)}">{text(line.name)}</a>',
            "–" if line.step is None else f"{line.step:,}",
            text(line.activity.headline),
        )
        for line in lines[:_MOST_LINES]
    ]
    content = table(("", "run", "newest checkpoint", "now"), rows, "runs")
    if not lines:
        content = (
            '<section class="now idle"><h2>no run yet</h2><p>It appears here by itself as soon as '
            "a start has written something. Is this the right CHECKPOINT_URI?</p></section>"
        )
    heading = f'<h1>Runs</h1>\n<p class="quiet">{text(uri)}</p>\n'
    if len(lines) > _MOST_LINES:
        said = f"The newest {_MOST_LINES} of {len(lines):,} runs. The page of each is /runs/NAME."
        heading += f'<p class="quiet">{text(said)}</p>\n'
    return document(
        "Runs", heading + content, Served((), served.problem, served.script, served.again)
    )


def notice(heading: str, sentence: str, served: Served) -> str:
    """A page that only says something."""
    return document(
        heading,
        f'<h1>{text(heading)}</h1>\n<section class="now idle"><p>{text(sentence)}</p></section>',
        served,
    )
