"""Several nodes: the same run as on one machine, and what happens to it when one of them is lost.

They are nodes of this machine, with a launcher each, over its loopback interface. With a network
of their own: test_node_network.
"""

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from app.run.layout import NODES
from app.run.view import read_view
from app.stores.contract import Store
from app.stores.opening import open_store
from tests.support.job import Finished, JobRunner, Outcome, outcome
from tests.support.nodes import Deed, Nodes, ask_node, kill_node, kill_worker
from tests.support.processes import wait_until_gone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 16


@pytest.fixture(scope="module")
def variables_of_run(job_environment: dict[str, str]) -> dict[str, str]:
    return {
        **job_environment,
        "TRAINER": "torch",
        "TOTAL_STEPS": str(STEPS),
        "CHECKPOINT_EVERY_STEPS": "8",
        "PRECISION": "32-true",
        "LEASE_TTL": "3",
        "PEER_TIMEOUT": "10",
        "GRACE_SECONDS": "60",
    }


@pytest.fixture
def job(variables_of_run: dict[str, str], tmp_path: Path) -> JobRunner:
    return JobRunner({**variables_of_run, "CHECKPOINT_URI": f"file://{tmp_path}/store"})


@pytest.fixture
def nodes(job: JobRunner, tmp_path: Path) -> Nodes:
    return Nodes(job, tmp_path, [2, 1])


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


def store_of(nodes: Nodes) -> Store:
    return open_store(nodes.job.environment["CHECKPOINT_URI"], "tiny")


def newest_step(nodes: Nodes) -> int:
    return read_view(store_of(nodes)).newest_step


def steps_in(log: str) -> list[int]:
    return [int(step) for step in re.findall(rf" step (\d+)/{STEPS} ", log)]


def logs(ended: list[Finished]) -> str:
    return "\n\n".join(f"{node.log}exit {node.code}" for node in ended)


def codes(ended: list[Finished]) -> list[int]:
    return [node.code for node in ended]


def assert_nothing_was_lost(nodes: Nodes, ended: list[Finished], deed: Deed) -> None:
    assert len(deed.pids) == sum(nodes.processes)
    assert wait_until_gone(deed.pids, 0) == [], logs(ended)
    assert newest_step(nodes) >= steps_in(ended[0].log)[-1] >= 3, logs(ended)


@pytest.mark.parametrize("trainer", ["torch", "lightning"])
def test_several_nodes_make_the_bits_of_as_many_processes_on_one(
    trainer: str, nodes: Nodes, undisturbed: Callable[[int], Outcome]
) -> None:
    """With two processes on one of them, and one on the other."""
    nodes.job = nodes.job.with_(TRAINER=trainer)
    ended = nodes.run()
    assert codes(ended) == [0, 0], logs(ended)
    assert "2 nodes with 3 processes train this run" in ended[0].log
    assert "of 3 ranks these are ours: 2" in ended[1].log
    assert NODES not in read_view(store_of(nodes)).objects
    assert outcome(store_of(nodes)).differences(undisturbed(3)) == []
    again = nodes.run()
    assert codes(again) == [0, 0], logs(again)
    assert all("nothing to do" in node.log for node in again[:1]), logs(again)


@pytest.mark.parametrize(("node", "local_rank"), [(1, 0), (0, 1)])
def test_a_killed_process_of_any_node_costs_the_step_in_progress_and_no_bit(
    node: int, local_rank: int, nodes: Nodes, undisturbed: Callable[[int], Outcome]
) -> None:
    kill = Deed(nodes, kill_worker(node, local_rank))
    ended = nodes.run(when={f" step 3/{STEPS} ": kill})
    assert codes(ended) == [75, 75], logs(ended)
    assert_nothing_was_lost(nodes, ended, kill)
    again = nodes.run()
    assert codes(again) == [0, 0], logs(again)
    assert outcome(store_of(nodes)).differences(undisturbed(3)) == []


def test_where_node_0_is_gone_another_commits_and_goes_on_alone(
    nodes: Nodes, undisturbed: Callable[[int], Outcome]
) -> None:
    kill = Deed(nodes, kill_node(0))
    ended = nodes.run(when={f" step 3/{STEPS} ": kill})
    assert codes(ended) == [-signal.SIGKILL, 75], logs(ended)
    assert ended[1].log.count("rank 0 is gone: this process commits step") == 1, logs(ended)
    assert_nothing_was_lost(nodes, ended, kill)
    alone = nodes.job.with_(DATA_DIR=str(nodes.data / "node-1"), DEVICES="1").run("train")
    assert alone.code == 0, alone.log
    made, one = outcome(store_of(nodes)), undisturbed(1)
    assert made.rows[-1][0] == STEPS
    assert made.rows[-1][1] == pytest.approx(one.rows[-1][1], rel=1e-5)


@pytest.mark.parametrize("node", [0, 1])
def test_a_signal_to_any_node_stops_all_after_the_same_step(
    node: int, nodes: Nodes, undisturbed: Callable[[int], Outcome]
) -> None:
    stop = Deed(nodes, ask_node(node))
    ended = nodes.run(when={f" step 3/{STEPS} ": stop})
    assert codes(ended) == [143, 143], logs(ended)
    assert_nothing_was_lost(nodes, ended, stop)
    assert newest_step(nodes) == steps_in(ended[0].log)[-1], logs(ended)
    again = nodes.run()
    assert codes(again) == [0, 0], logs(again)
    assert outcome(store_of(nodes)).differences(undisturbed(3)) == []


def test_a_signal_to_one_node_before_all_have_come_ends_the_others_too(nodes: Nodes) -> None:
    stop = Deed(nodes, ask_node(1))
    ended = nodes.run(when={"node 1 is here": stop})
    assert codes(ended) == [143, 143], logs(ended)


def test_what_differs_between_the_nodes_is_said_with_both_values(nodes: Nodes) -> None:
    ended = nodes.run(changes={1: {"LEARNING_RATE": "0.002", "DATASET": "builtin"}})
    assert codes(ended) == [78, 78], logs(ended)
    for node in ended:
        assert "LEARNING_RATE is 0.002 on node 1, but 0.0003 on node 0: it has to be" in node.log
        assert "DATASET is builtin on node 1, but /" in node.log
    assert read_view(store_of(nodes)).record is None


def test_torchrun_on_each_node_makes_the_same_run_and_finds_it_finished(
    nodes: Nodes, undisturbed: Callable[[int], Outcome]
) -> None:
    nodes.module, nodes.processes = "torch.distributed.run", [1, 1]
    # Without these it asks for the name of this machine, which a container without network has not.
    here = ("--local-addr", "127.0.0.1", "--master-addr", "127.0.0.1", "--nnodes", "2")
    nodes.words = (*here, "--nproc-per-node", "1", "-m", "app", "train")
    ended = nodes.run()
    assert codes(ended) == [0, 0], logs(ended)
    assert outcome(store_of(nodes)).differences(undisturbed(2)) == []
    again = nodes.run()
    assert codes(again) == [0, 0], logs(again)
    assert "nothing to do" in again[0].log


def test_a_finished_run_needs_no_other_node(nodes: Nodes) -> None:
    """A pod that was made again after the last step would wait for one that never comes."""
    nodes.job = nodes.job.with_(TOTAL_STEPS="1")
    assert nodes.job.with_(DATA_DIR=str(nodes.data / "node-1")).run("train").code == 0
    finished = nodes.node(1, 1).run("train")
    assert finished.code == 0, finished.log
