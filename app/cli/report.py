"""`report`: a page with the curves and attempts of a run."""

import argparse
import tempfile
from pathlib import Path

from app.cli.arguments import Commands, place
from app.cli.named_run import existing_run
from app.failures import disk_failures
from app.observe.report import page
from app.observe.reported_run import read_run
from app.settings.combined import Settings
from app.training.preemption import StopRequest


def add_commands(commands: Commands) -> None:
    command = commands.add("report", report, "write a page with the curves and attempts of a run")
    command.add_argument(
        "--to", type=place, metavar="FILE", help="page to write; default: RUN-report.html"
    )


def report(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    """Write the run's page here, whole or not at all."""
    run = read_run(existing_run(settings))
    target = Path(arguments.to or f"{run.name}-report.html").absolute()
    with disk_failures(f"--to {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".report-", dir=target.parent) as scratch:
            partial = Path(scratch) / "index.html"
            partial.write_text(page(run), "utf-8")
            partial.replace(target)
    print(target)
