"""Which process of a run this is, as launchers say it, each under its own names."""

import pytest

from app.errors import ConfigError
from app.settings.combined import impossible_nodes
from app.settings.load import load_settings
from app.settings.place import Place, place_of_this_process
from tests.support.refused_settings import problems

pytestmark = pytest.mark.usefixtures("nothing_set")

TORCHRUN = {
    "RANK": "3",
    "LOCAL_RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "4711",
}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TORCHRUN, "APP_LAUNCHER", "APP_LAUNCHER_NEWS", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)


def set_all(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_a_process_that_nobody_launched_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_of_this_process() == Place()
    set_all(monkeypatch, WORLD_SIZE="1", RANK="0")
    assert place_of_this_process().is_alone


def test_torchruns_worker_knows_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, **TORCHRUN)
    place = place_of_this_process()
    assert place == Place(3, 3, 4, "localhost", 4711)
    assert place.under_torchrun


def test_what_the_launcher_hands_a_worker_is_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(1, 1, 2, port=4711, launcher=77)
    environment = place.environment()
    set_all(monkeypatch, **{name: environment[name] for name in (*TORCHRUN, "APP_LAUNCHER")})
    assert place_of_this_process() == place
    assert not place.under_torchrun


def test_torchruns_worker_on_another_machine_knows_its_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_all(monkeypatch, **{**TORCHRUN, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"})
    place = place_of_this_process()
    assert (place.node, place.nodes, place.neighbours) == (1, 2, 2)
    assert not place.leads_node


def test_a_worker_of_several_nodes_gets_their_names_and_no_interface(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    place = Place(4, 0, 6, "first", 29500, launcher=77, node=2, nodes=3, neighbours=2)
    environment = place.environment()
    assert "GLOO_SOCKET_IFNAME" not in environment
    named = ("NUM_NODES", "NODE_RANK", *TORCHRUN, "APP_LAUNCHER")
    set_all(monkeypatch, **{name: environment[name] for name in named})
    processes = load_settings().processes
    assert (processes.num_nodes, processes.node_rank, processes.master_addr) == (3, 2, "first")
    assert place_of_this_process(processes.num_nodes, processes.node_rank) == place
    assert place.leads_node


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"RANK": ""}, "WORLD_SIZE=4 .* but RANK='' is no number"),
        ({"LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK=3 below LOCAL_WORLD_SIZE=2"),
        ({"RANK": "4"}, "RANK=4 has to be below WORLD_SIZE=4"),
    ],
)
def test_a_place_that_cannot_be_is_refused(
    changes: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, **{**TORCHRUN, **changes})
    with pytest.raises(ConfigError, match=text):
        place_of_this_process()


@pytest.mark.parametrize(
    ("other", "value", "section"),
    [("PET_NPROC_PER_NODE", "4", "4"), ("PET_NPROC_PER_NODE", "gpu", "auto")],
)
def test_torchruns_own_variables_mean_the_same(
    other: str, value: str, section: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, PET_NNODES="1", PET_MASTER_PORT="4711", PET_MASTER_ADDR="here")
    monkeypatch.setenv(other, value)
    processes = load_settings().processes
    assert processes.devices == section
    assert (processes.num_nodes, processes.master_addr, processes.master_port) == (1, "here", 4711)


def test_an_empty_variable_of_ours_does_not_hide_torchruns(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, DEVICES="", PET_NPROC_PER_NODE="3")
    assert load_settings().processes.devices == "3"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"DEVICES": "2", "PET_NPROC_PER_NODE": "4"}, "PET_NPROC_PER_NODE=4, but DEVICES=2: "),
        ({"MASTER_ADDR": "a", "PET_MASTER_ADDR": "b"}, "PET_MASTER_ADDR=b, but MASTER_ADDR=a: "),
        (
            {"NUM_NODES": "2", "NODE_RANK": "0", "JOB_COMPLETION_INDEX": "1"},
            "JOB_COMPLETION_INDEX=1, but NODE_RANK=0: ",
        ),
        (
            {"PET_NNODES": "2", "PET_NODE_RANK": "0", "JOB_COMPLETION_INDEX": "1"},
            "JOB_COMPLETION_INDEX=1, but PET_NODE_RANK=0: ",
        ),
    ],
)
def test_a_contradiction_is_refused_with_both_names(
    given: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, **given)
    assert problems().startswith(text)


@pytest.mark.parametrize("where", ["environment", "flag"])
def test_the_index_of_a_job_is_the_number_of_the_machine_where_there_are_several(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    if where == "environment":
        monkeypatch.setenv("PET_NNODES", "2")
    processes = load_settings({"num_nodes": "2"} if where == "flag" else {}).processes
    assert (processes.num_nodes, processes.node_rank) == (2, 1)


def test_the_index_of_a_job_of_single_machines_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "7")
    assert load_settings().processes.node_rank == 0


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ({"NODE_RANK": "1"}, ["NODE_RANK=1, but NUM_NODES=1: unset one of them"]),
        (
            {"NUM_NODES": "2"},
            ["NUM_NODES=2, but NODE_RANK is not set", "NUM_NODES=2, but MASTER_ADDR is not set"],
        ),
        (
            {"NUM_NODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "here"},
            ["NODE_RANK=2, but NUM_NODES=2: numbers begin with 0"],
        ),
        ({"NUM_NODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "here"}, []),
    ],
)
def test_what_train_cannot_use_of_several_machines_stops_no_other_command(
    given: dict[str, str], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, **given)
    found = list(impossible_nodes(load_settings()))
    assert len(found) == len(texts)
    assert all(line.startswith(text) for line, text in zip(found, texts, strict=True))


@pytest.mark.parametrize(
    ("nodes", "refused"), [(1, True), (2, True), (4, False)], ids=["none", "others", "these"]
)
def test_another_launcher_may_start_one_process_on_each_machine(
    nodes: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    if refused:
        with pytest.raises(ConfigError, match=r"SLURM_STEP_NUM_TASKS=4 .* NUM_NODES=4 machines"):
            place_of_this_process(nodes)
    else:
        assert place_of_this_process(nodes, 3) == Place(nodes=4, node=3)


@pytest.mark.parametrize("value", ["0", "-1", "65", "all", "1.5"])
def test_a_number_of_devices_that_cannot_be_is_refused(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEVICES", value)
    assert "allowed: auto, or a number from 1 to 64" in problems()
