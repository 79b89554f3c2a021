"""`train`: start the run that the settings name, or continue it."""

import argparse
import contextlib
import logging
import sys

import app
from app.cli.arguments import Commands
from app.data.data_dir import DataDir
from app.heartbeat import show_life_of
from app.settings.combined import Settings
from app.settings.load import refuse_several_processes
from app.training.preemption import StopRequest
from app.training.spot import watched_for_notices
from app.training.watchdog import watched_for_hangs

log = logging.getLogger(__name__)


def add_commands(commands: Commands) -> None:
    commands.add("train", train, "train, or continue, the run that the settings name")


def train(settings: Settings, _: argparse.Namespace, stop: StopRequest) -> None:
    refuse_several_processes()
    # The libraries take seconds to load: this line tells the user what the wait is for.
    log.info(
        "smollm2-spot-trainer %s starts: run %s, checkpoints in %s",
        app.__version__,
        " or ".join(settings.run_names),
        settings.checkpoints.checkpoint_uri,
    )
    DataDir(settings.data.data_dir).take_temporary_files()
    show_life_of(settings.run_place)
    # Before the libraries load, so that a notice that comes meanwhile is seen too.
    # What a library prints is a part of the log: whoever reads stdout may go away.
    with (
        contextlib.redirect_stdout(sys.stderr),
        watched_for_hangs(settings.checkpoints, stop),
        watched_for_notices(settings.checkpoints, settings.metadata_servers),
    ):
        from app.training.start import run

        run(settings, stop)
