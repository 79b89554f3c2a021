"""Which page a path leads to: that of a run, the list of runs, or one that only says something."""

import logging
from collections.abc import Callable
from http import HTTPStatus

from app.observe.index import index, notice
from app.observe.live import LiveRuns, Seen
from app.observe.report import Served, page
from app.observe.reported_run import ReportedRun

RUNS = "/runs/"
SCRIPT = "/live.js"
_AGAIN_SECONDS = 10  # for a browser without scripts
_MOST_LINKS = 20

log = logging.getLogger(__name__)


def page_at(
    path: str,
    runs: LiveRuns,
    uri: str,
    home: str | None = None,
    page_of: Callable[[ReportedRun, Served], str] = page,
) -> tuple[HTTPStatus, str]:
    """The page at `path`, which is / or begins with /runs/. The runs lie below `uri`.

    At / is the run `home`, where it exists, or the only one, or the list of all. `page_of` makes
    the page of a run.
    """
    name = path.removeprefix(RUNS) if path.startswith(RUNS) else ""
    if path == "/":
        folders = runs.folders().value or ()
        only = folders[0] if len(folders) == 1 else ""
        name = home if home and home in folders else only
    if name and (seen := runs.run(name)) is not None:
        return HTTPStatus.OK, _of_run(name, seen, _served(runs, seen.problem, name), page_of)
    if path not in ("/", RUNS):
        said = f"{uri} holds no run of this name"
        return HTTPStatus.NOT_FOUND, notice("No such run", said, _served(runs, None))
    listed = runs.all()
    served = _served(runs, listed.problem)
    if listed.value is None:
        return HTTPStatus.OK, notice("Runs", f"reading {uri} …", served)
    return HTTPStatus.OK, index(uri, listed.value, served)


def _of_run(
    name: str,
    seen: Seen[ReportedRun],
    served: Served,
    page_of: Callable[[ReportedRun, Served], str],
) -> str:
    if seen.value is None:
        return notice(name, "reading the run …", served)
    try:
        return page_of(seen.value, served)
    except Exception:  # a bug of the page, at what this run holds
        log.exception("the page of run %s was not made", name)
        return notice(name, "it cannot be shown: a bug of this page, whose log has more", served)


def _served(runs: LiveRuns, problem: str | None, name: str = "") -> Served:
    """With links to the newest runs, the one that is shown among them."""
    newest = runs.names()[:_MOST_LINKS]
    shown = [name] if name and name not in newest else []
    return Served([*newest, *shown], problem, SCRIPT, _AGAIN_SECONDS)
