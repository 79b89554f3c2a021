"""One run on several machines: what their first processes tell each other before it begins.

Each of them looks at its settings and data and makes its first tokens by itself, beside node 0.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

import app
from app.console import setup_logging
from app.errors import AppError, LostPeer, NotFound, Preempted
from app.failures import first_line
from app.heartbeat import beat
from app.ranks.meeting import Arrival, NotThisMeeting
from app.ranks.team import Team
from app.run.layout import NODES
from app.settings.combined import Settings
from app.settings.variables import variables
from app.state.snapshot import library_versions
from app.stores.contract import Store
from app.training.groundwork import Groundwork, lay_groundwork
from app.training.job import Job
from app.training.plan import NodeFolders, settings_in_common
from app.training.preemption import Interrupted

log = logging.getLogger(__name__)

# Beside what the processes of one machine have to have in common.
_ON_ALL_NODES = ("run", "model", "processes")
_OF_EACH_NODE = ("DEVICES", "NODE_RANK", "MASTER_ADDR", "PEER_TIMEOUT", "RESUME")
_DATA = ("DATASET", "DATASET_CONFIG", "DATASET_SPLIT", "TEXT_COLUMN", "TOKENIZER")


@dataclass(frozen=True)
class NodeLimits:
    """Seconds. A shared volume may show a new file only after `visible`."""

    visible: float = 15.0
    poll: float = 0.5
    last_word: float = 5.0  # to find node 0, only to say that this node ends


def assemble_nodes(ground: Groundwork, settings: Settings, team: Team) -> Job:
    """For rank 0: wait for the other nodes, if there are any. The job for as many processes.

    Raises ConfigError for what differs between them, and LostPeer.
    """
    if team.meeting is None:
        return ground.job
    store = ground.store
    try:
        assembly = team.meeting.assemble(
            _arrival(ground, settings, team), lambda word: store.put(NODES, [word.encode()])
        )
    finally:
        if store.deletes:
            with contextlib.suppress(AppError):  # it is overwritten by the next start
                store.delete([NODES])
    team.take_seats(assembly)
    log.info("%d nodes with %d processes train this run", team.place.nodes, team.size)
    return ground.job.at(team.place)


@contextlib.contextmanager
def other_nodes_told(team: Team) -> Iterator[None]:
    """For rank 0: where this ends before all have joined, the other nodes end as it did."""
    if team.place.nodes > 1:
        team.host_nodes()
    try:
        yield
    except BaseException as error:
        if team.meeting is not None and not team.joined:
            lines = error.args if isinstance(error, AppError) else ()
            team.meeting.end(_exit_code(error), [str(line) for line in lines])
        raise


@contextlib.contextmanager
def come_to_nodes(
    settings: Settings, team: Team, limits: NodeLimits = NodeLimits()
) -> Iterator[Groundwork | None]:
    """For the first process of another node: the groundwork, once all nodes are there.

    None if the run is finished. Where the block ends before all have joined, node 0 is told.
    """
    ground = None
    try:
        ground = lay_groundwork(settings)
        if ground is not None:
            team.find_nodes()
            ground = ground.with_first_tokens()
            _arrive(ground, settings, team, limits)
            setup_logging(settings.logs.log_format, settings.logs.log_level, team.rank)
        yield ground
    except BaseException as error:
        if not team.joined:
            _leave(team, error, limits)
        raise
    finally:
        if ground is not None:
            ground.data.close()


def node_folders(team: Team) -> list[NodeFolders]:
    """Where each node has tokens and tokenizer; empty where there is one node."""
    if team.assembly is None:
        return []
    return [NodeFolders.model_validate(arrival.folders) for arrival in team.assembly.arrivals]


def _arrive(ground: Groundwork, settings: Settings, team: Team, limits: NodeLimits) -> None:
    meeting, own = team.meeting, _arrival(ground, settings, team)
    while meeting is not None:
        try:
            assembly = meeting.arrive(own, lambda word: _missing(ground.store, word, limits))
        except NotThisMeeting as error:
            # An attempt before this one is ending on node 0, or node 0 was started again.
            log.warning("node 0 is met again: %s", first_line(error))
            meeting.forget()
            meeting = team.find_nodes()
        else:
            team.take_seats(assembly)
            return


def _leave(team: Team, error: BaseException, limits: NodeLimits) -> None:
    with contextlib.suppress(LostPeer, NotThisMeeting):
        if team.meeting is None and isinstance(error, AppError):
            team.find_nodes(limits.last_word)
        if team.meeting is not None:
            team.meeting.leave(_exit_code(error))


def _missing(store: Store, word: str, limits: NodeLimits) -> str:
    """What is wrong if this node does not find `word`, which node 0 has written, in the store."""
    until = time.monotonic() + limits.visible
    while True:
        with contextlib.suppress(NotFound):
            if store.get(NODES)[0] == word.encode():
                return ""
        if time.monotonic() > until:
            return (
                f"CHECKPOINT_URI leads to {store.uri}, where what node 0 writes to it does not "
                "appear: mount one volume on all nodes (ReadWriteMany in Kubernetes), or use a "
                "bucket (s3://…)"
            )
        beat()
        time.sleep(limits.poll)


def _arrival(ground: Groundwork, settings: Settings, team: Team) -> Arrival:
    named = {
        variable.name: settings.shown(variable)
        for variable in variables()
        if variable.section in _ON_ALL_NODES or variable.name in _DATA
    }
    made_of = {
        "the text of DATASET": ground.source.fingerprint[:16],
        "the files of TOKENIZER": ground.job.tokenizer.fingerprint[:16],
        "the version of this program": app.__version__,
        **{f"the version of {name}": text for name, text in library_versions().items()},
    }
    return Arrival(
        node=team.place.node,
        processes=team.place.neighbours,
        agreed={
            **settings_in_common(settings),
            **{name: value for name, value in named.items() if name not in _OF_EACH_NODE},
            **made_of,
        },
        folders={
            "tokens": str(ground.data.directory),
            "tokenizer": str(ground.job.tokenizer.directory),
        },
    )


def _exit_code(error: BaseException) -> int:
    if isinstance(error, Interrupted):
        return Preempted.exit_code
    return error.exit_code if isinstance(error, AppError) else AppError.exit_code
