"""`train`: start the run that the settings name, or continue it."""

import argparse
import contextlib
import logging
import sys
from dataclasses import replace

import app
from app.cli.arguments import Commands
from app.console import counted, setup_logging
from app.data.data_dir import DataDir
from app.errors import ConfigError, Preempted, WorkersEnded
from app.heartbeat import show_life_of
from app.ranks.launcher import Launcher, Patience, command_line
from app.ranks.orphan import stop_with
from app.settings.combined import Settings, impossible_nodes
from app.settings.nccl import ask_nccl
from app.settings.place import Place, place_of_this_process
from app.settings.values import as_typed
from app.settings.variables import variables
from app.training.preemption import Interrupted, StopRequest
from app.training.spot import watched_for_notices
from app.training.watchdog import watched_for_hangs

log = logging.getLogger(__name__)


def add_commands(commands: Commands) -> None:
    commands.add("train", train, "train, or continue, the run that the settings name")


def train(settings: Settings, _: argparse.Namespace, stop: StopRequest) -> None:
    """Raises WorkersEnded where the run was trained by several processes, with their code."""
    place = _place(settings)
    if place.launcher is not None:
        stop_with(place.launcher)
    if not place.is_alone:
        ask_nccl()
    settings = replace(settings, place=place)
    setup_logging(settings.logs.log_format, settings.logs.log_level, place.rank)
    if place.launcher is None:
        # The libraries take seconds to load: this line tells the user what the wait is for.
        log.info(
            "smollm2-spot-trainer %s starts: run %s, checkpoints in %s",
            app.__version__,
            " or ".join(settings.run_names),
            settings.checkpoints.checkpoint_uri,
        )
    if place.under_torchrun:
        log.info(
            "rank %d of %d, started by torchrun: it ends with 1 whatever these processes end with; "
            "an orchestrator gets their exit codes where DEVICES starts them",
            place.rank,
            place.world_size,
        )
    DataDir(settings.data.data_dir).take_temporary_files()
    if place.rank:
        _follow(settings, stop)
        return
    processes, alone = 1, place.is_alone and place.nodes == 1
    show_life_of(settings.run_place)
    # Before the libraries load, so that a notice that comes meanwhile is seen too.
    # What a library prints is a part of the log: whoever reads stdout may go away.
    with (
        contextlib.redirect_stdout(sys.stderr),
        watched_for_hangs(settings.checkpoints, stop),
        watched_for_notices(settings.checkpoints, settings.metadata_servers),
    ):
        if place.is_alone:
            processes = _processes(settings)
        if processes == 1 and (alone or not place.is_alone):
            from app.training.start import run

            run(settings, stop)
            return
    _launch(settings, processes)


def _follow(settings: Settings, stop: StopRequest) -> None:
    """Only rank 0 says what all do. Of another node, its first process is asked whether it lives,
    and is told that the machine will vanish."""
    with contextlib.ExitStack() as watched:
        watched.enter_context(contextlib.redirect_stdout(sys.stderr))
        watched.enter_context(watched_for_hangs(settings.checkpoints, stop))
        if settings.place.leads_node:
            show_life_of(settings.run_place)
            watched.enter_context(
                watched_for_notices(settings.checkpoints, settings.metadata_servers)
            )
        from app.training.follower import follow

        try:
            follow(settings, stop)
        except Interrupted as end:
            raise Preempted from end


def _place(settings: Settings) -> Place:
    """Raises ConfigError for what cannot be."""
    if problems := list(impossible_nodes(settings)):
        raise ConfigError(*problems)
    processes = settings.processes
    place = place_of_this_process(processes.num_nodes, processes.node_rank)
    if processes.num_nodes > 1 and place.is_alone:
        address, port = processes.master_addr or place.address, processes.master_port
        place = replace(place, address=address, port=port)
    return place


def _processes(settings: Settings) -> int:
    """As many as DEVICES says. The libraries are asked only where GPUs have to be counted."""
    if settings.processes.devices != "auto":
        return int(settings.processes.devices)
    if settings.compute.device in ("cpu", "mps"):
        return 1
    from app.model.device import gpus_here

    return max(1, gpus_here())


def _launch(settings: Settings, processes: int) -> None:
    flags = {
        variable.flag: as_typed(settings.value(variable))
        for variable in variables()
        if settings.sources.get(variable.name) == "flag"
    }
    place = settings.place
    if place.nodes == 1:
        log.info("%d processes train this run on this machine", processes)
    else:
        log.info(
            "node %d of %d, with %s; node 0 is at %s:%d",
            place.node,
            place.nodes,
            counted(processes, "process", "processes"),
            place.address,
            place.port,
        )
    if settings.processes.devices == "auto":
        log.warning("several GPUs in one run were never tried before: DEVICES=1 uses one of them")
    checkpoints = settings.checkpoints
    patience = Patience(
        checkpoints.grace_seconds, settings.processes.peer_timeout, checkpoints.lease_ttl
    )
    code = Launcher(command_line(flags), processes, patience, place=place).run()
    if place.node:
        log.info(
            "node %d ends (exit %d); what the run did, rank 0 says on node 0", place.node, code
        )
    if code:
        raise WorkersEnded(code)
