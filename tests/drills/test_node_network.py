"""Several machines with a network between them, which is cut, and machines that vanish.

The machines are network namespaces of this one, so this needs root. What needs no network of its
own is in test_nodes, which runs everywhere.
"""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.run.view import read_view
from app.stores.opening import open_store
from tests.support.job import Finished, JobRunner, Outcome, outcome
from tests.support.network import Network, network_of, why_there_is_none
from tests.support.nodes import Deed, Nodes, ask_node
from tests.support.processes import wait_until_gone

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(why_there_is_none()), reason=why_there_is_none() or "-"),
]

STEPS = 12
PEER_TIMEOUT = 8
SLACK = 60.0  # seconds, for a busy machine


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with network_of(3) as network:
        yield network


@pytest.fixture(scope="module")
def variables_of_run(job_environment: dict[str, str]) -> dict[str, str]:
    return {
        **job_environment,
        "TRAINER": "torch",
        "TOTAL_STEPS": str(STEPS),
        "CHECKPOINT_EVERY_STEPS": "8",
        "PRECISION": "32-true",
        "LEASE_TTL": "3",
        "PEER_TIMEOUT": str(PEER_TIMEOUT),
        "GRACE_SECONDS": "60",
    }


@pytest.fixture
def nodes(network: Network, variables_of_run: dict[str, str], tmp_path: Path) -> Nodes:
    network.mend()
    job = JobRunner({**variables_of_run, "CHECKPOINT_URI": f"file://{tmp_path}/store"})
    prefixes = [network.prefix(0), network.prefix(1)]
    return Nodes(job, tmp_path, [1, 1], network.address(0), prefixes)


@pytest.fixture(scope="module")
def undisturbed(
    variables_of_run: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Outcome]:
    """By the number of processes, what a run of one machine leaves that nothing disturbs."""
    made: dict[int, Outcome] = {}

    def by(processes: int) -> Outcome:
        if processes not in made:
            folder = tmp_path_factory.mktemp("undisturbed")
            places = {"CHECKPOINT_URI": f"file://{folder}/store", "DATA_DIR": f"{folder}/data"}
            one = JobRunner({**variables_of_run, **places, "DEVICES": str(processes)})
            finished = one.run("train")
            assert finished.code == 0, finished.log
            made[processes] = outcome(open_store(places["CHECKPOINT_URI"], "tiny"))
        return made[processes]

    return by


def made_by(nodes: Nodes) -> Outcome:
    return outcome(open_store(nodes.job.environment["CHECKPOINT_URI"], "tiny"))


def logs(ended: list[Finished]) -> str:
    return "\n\n".join(f"{node.log}exit {node.code}" for node in ended)


def codes(ended: list[Finished]) -> list[int]:
    return [node.code for node in ended]


def assert_over(nodes: Nodes, ended: list[Finished], deed: Deed) -> None:
    """No process is left, and the last whole step is in the store."""
    assert time.monotonic() - deed.at < PEER_TIMEOUT + SLACK, logs(ended)
    assert len(deed.pids) == sum(nodes.processes)
    assert wait_until_gone(deed.pids, 0) == [], logs(ended)
    steps = [int(step) for step in re.findall(rf" step (\d+)/{STEPS} ", ended[0].log)]
    newest = read_view(open_store(nodes.job.environment["CHECKPOINT_URI"], "tiny")).newest_step
    assert newest >= steps[-1] >= 3, logs(ended)


def test_two_machines_make_the_bits_of_two_processes_on_one_and_losses_of_one(
    nodes: Nodes, undisturbed: Callable[[int], Outcome]
) -> None:
    ended = nodes.run()
    assert codes(ended) == [0, 0], logs(ended)
    made = made_by(nodes)
    assert made.differences(undisturbed(2)) == []
    losses = [row[1] for row in made.rows]
    assert losses == pytest.approx([row[1] for row in undisturbed(1).rows], rel=1e-5)


def test_a_network_that_is_cut_in_a_step_ends_both_sides_and_costs_no_bit(
    nodes: Nodes, network: Network, undisturbed: Callable[[int], Outcome]
) -> None:
    cut = Deed(nodes, lambda _: network.cut(1))
    ended = nodes.run(when={f" step 3/{STEPS} ": cut})
    assert codes(ended) == [75, 75], logs(ended)
    assert f"silent for {PEER_TIMEOUT} s (PEER_TIMEOUT)" in ended[0].log, logs(ended)
    assert_over(nodes, ended, cut)
    network.mend()
    again = nodes.run()
    assert codes(again) == [0, 0], logs(again)
    assert made_by(nodes).differences(undisturbed(2)) == []


def test_where_node_0_vanishes_another_takes_its_lease_and_commits(
    nodes: Nodes, network: Network
) -> None:
    kill = Deed(nodes, lambda _: network.kill(0))
    ended = nodes.run(when={f" step 3/{STEPS} ": kill})
    assert codes(ended) == [-9, 75], logs(ended)
    assert ended[1].log.count("rank 0 is gone: this process commits step") == 1, logs(ended)
    assert_over(nodes, ended, kill)


def test_of_three_machines_two_commit_without_the_one_that_vanishes(
    nodes: Nodes, network: Network
) -> None:
    nodes.processes = [1, 1, 1]
    nodes.prefixes.append(network.prefix(2))
    kill = Deed(nodes, lambda _: network.kill(2))
    ended = nodes.run(when={f" step 3/{STEPS} ": kill})
    assert codes(ended) == [75, 75, -9], logs(ended)
    assert_over(nodes, ended, kill)


def test_a_signal_to_one_machine_stops_both_after_the_same_step(nodes: Nodes) -> None:
    stop = Deed(nodes, ask_node(1))
    ended = nodes.run(when={f" step 3/{STEPS} ": stop})
    assert codes(ended) == [143, 143], logs(ended)
    assert_over(nodes, ended, stop)


def test_a_folder_that_is_not_one_for_all_machines_is_refused(nodes: Nodes, tmp_path: Path) -> None:
    """CHECKPOINT_URI reads the same on both, and leads to a disk of each machine's own."""
    shared, own = tmp_path / "store", tmp_path / "own"
    shared.mkdir()
    own.mkdir()
    mounting = f'mount --bind {own} {shared} && exec "$@"'
    nodes.prefixes[1] += ["unshare", "--mount", "sh", "-c", mounting, "sh"]
    ended = nodes.run()
    assert codes(ended) == [78, 78], logs(ended)
    for node in ended:
        assert f"node 1: CHECKPOINT_URI leads to file://{shared}" in node.log, node.log
        assert "mount one volume on all nodes" in node.log
