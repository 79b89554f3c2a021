"""`report`: a page with the curves and attempts of a run, written or served."""

import argparse
import logging
import tempfile
import threading
from functools import partial
from pathlib import Path

from app.cli.arguments import Commands, count_from, place
from app.cli.named_run import existing_run
from app.errors import UsageError
from app.failures import disk_failures
from app.observe.live import LiveRuns, PageLimits
from app.observe.report import page
from app.observe.reported_run import read_run
from app.observe.server import Address, PageServer, Shown
from app.settings.combined import Settings
from app.stores.opening import open_place
from app.training.preemption import StopRequest

_HOST, _PORT = "127.0.0.1", 8080

log = logging.getLogger(__name__)


def add_commands(commands: Commands) -> None:
    command = commands.add("report", report, "write a page about a run, or serve it as it goes on")
    command.add_argument(
        "--to", type=place, metavar="FILE", help="page to write; default: RUN-report.html"
    )
    command.add_argument(
        "--serve", action="store_true", help="serve the pages of all runs in CHECKPOINT_URI"
    )
    command.add_argument(
        "--host", metavar="NAME", help=f"with --serve: address to listen on; default: {_HOST}"
    )
    command.add_argument(
        "--port",
        type=count_from(0, 65_535),
        metavar="NUMBER",
        help=f"with --serve: default: {_PORT}; 0: one that is free",
    )


def report(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    """Write the run's page here, whole or not at all; or serve it until a signal comes."""
    if arguments.serve:
        if arguments.to is not None:
            raise UsageError("--to and --serve have no meaning together: leave one of them out")
        port = _PORT if arguments.port is None else arguments.port
        _serve(settings, arguments.host or _HOST, port)
        return
    if arguments.host is not None or arguments.port is not None:
        raise UsageError("--host and --port have a meaning only with --serve")
    run = read_run(existing_run(settings))
    target = Path(arguments.to or f"{run.name}-report.html").absolute()
    with disk_failures(f"--to {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".report-", dir=target.parent) as scratch:
            partial_page = Path(scratch) / "index.html"
            partial_page.write_text(page(run), "utf-8")
            partial_page.replace(target)
    print(target)


def _serve(settings: Settings, host: str, port: int) -> None:
    """Serve until a signal raises in this thread. What the store says is read when asked for."""
    uri = settings.checkpoints.checkpoint_uri
    runs = LiveRuns(partial(open_place, uri), uri, PageLimits())
    server = PageServer(Address(host, port, f"--host {host} --port {port}"), Shown(runs, uri))
    log.info("the page of %s is at %s", uri, server.url)
    threading.Thread(target=server.serve_forever, name="page", daemon=True).start()
    threading.Event().wait()
