"""Jobs that tell trackers: killed, continued, extended, on two processes, beside a dead server."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.observe.rows import stored_rows
from app.run.tracked_run import read_tracked_run
from app.stores.contract import Store
from app.stores.opening import open_store
from tests.support.job import JobRunner
from tests.support.mlflow_server import MlflowServer
from tests.support.wandb_files import wandb_files

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("mlflow")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    found = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    found.start()
    yield found
    found.kill()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store", "tiny")


@pytest.fixture
def experiment(request: pytest.FixtureRequest) -> str:
    """Each test's own."""
    return str(request.node.name)


def job(job_environment: dict[str, str], folder: Path, **changes: str) -> JobRunner:
    return JobRunner(
        {
            **job_environment,
            "CHECKPOINT_URI": f"file://{folder}/store",
            "DATA_DIR": f"{folder}/data",
            "TRAINER": "torch",
            "TOTAL_STEPS": "12",
            "CHECKPOINT_EVERY_STEPS": "3",
            "LOGGERS": "wandb,mlflow",
            "WANDB_MODE": "offline",
            "WANDB_DIR": "",
            **changes,
        }
    )


def losses(store: Store) -> list[tuple[int, float]]:
    return [(row.step, row.loss) for row in stored_rows(store)]


@pytest.mark.parametrize("trainer", ["lightning", "torch"])
def test_a_killed_and_extended_run_is_one_run_in_each_tracker(
    trainer: str,
    server: MlflowServer,
    store: Store,
    job_environment: dict[str, str],
    tmp_path: Path,
    experiment: str,
) -> None:
    there = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_EXPERIMENT_NAME": experiment}
    runner = job(job_environment, tmp_path, TRAINER=trainer, **there)
    killed = runner.run("train", when={"step 8/12": lambda process: process.kill()})
    assert killed.code == -9, killed.log
    resumed = runner.run("train")
    assert resumed.code == 0, resumed.log
    extended = runner.with_(ADDITIONAL_STEPS="3").run("train")
    assert extended.code == 0, extended.log
    expected = losses(store)
    assert [step for step, _ in expected] == list(range(1, 16))
    (offline,) = wandb_files(tmp_path)
    (run,) = server.runs(experiment)
    tracked = read_tracked_run(store)
    assert tracked is not None
    assert (offline.id, run.info.run_id) == (tracked.name, tracked.mlflow_run_id)
    assert offline.values("loss") == expected
    assert server.history(run.info.run_id, "loss") == expected
    assert run.info.status == "FINISHED" and offline.exit_code == 0
    assert run.data.tags["checkpoint.step"] == "15" == str(offline.summary["checkpoint/step"])
    assert run.data.params["TRAINER"] == trainer == offline.config["TRAINER"]


def test_a_server_that_was_away_is_told_by_a_command_and_once(
    server: MlflowServer,
    store: Store,
    job_environment: dict[str, str],
    tmp_path: Path,
    experiment: str,
) -> None:
    runner = job(
        job_environment,
        tmp_path,
        LOGGERS="mlflow",
        MLFLOW_EXPERIMENT_NAME=experiment,
        TOTAL_STEPS="4",
    )
    away = runner.with_(MLFLOW_TRACKING_URI="http://127.0.0.1:9").run("train")
    assert away.code == 0, "a tracker is no reason to fail"
    assert "mlflow is behind by 4 rows" in away.log
    unsent = runner.with_(MLFLOW_TRACKING_URI="http://127.0.0.1:9").run("run", "track")
    assert unsent.code == 75, unsent.log
    there = runner.with_(MLFLOW_TRACKING_URI=server.uri)
    for _ in range(2):
        told = there.run("run", "track")
        assert told.code == 0, told.log
    (run,) = server.runs(experiment)
    assert server.history(run.info.run_id, "loss") == losses(store)
    assert (run.info.status, run.data.tags["checkpoint.step"]) == ("FINISHED", "4")
    nothing = there.with_(LOGGERS="csv").run("run", "track")
    assert nothing.code == 78 and "names no tracker of others" in nothing.log


def test_a_server_that_never_answers_costs_no_step_and_no_grace(
    store: Store, job_environment: dict[str, str], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and that is all
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        runner = job(
            job_environment,
            tmp_path,
            LOGGERS="mlflow",
            MLFLOW_TRACKING_URI=uri,
            MLFLOW_HTTP_REQUEST_TIMEOUT="600",
            TOTAL_STEPS="100000",
            GRACE_SECONDS="6",
        )
        asked: list[float] = []

        def stop(process: object) -> None:
            asked.append(time.monotonic())
            process.terminate()  # type: ignore[attr-defined]

        stopped = runner.run("train", when={"step 20/": stop})
        took = time.monotonic() - asked[0]
    assert stopped.code == 143, stopped.log
    assert took < 6
    assert "mlflow is behind by" in stopped.log
    assert len(losses(store)) >= 20


def test_rank_0_alone_tells_trackers(
    job_environment: dict[str, str], store: Store, tmp_path: Path
) -> None:
    finished = job(job_environment, tmp_path, LOGGERS="wandb", TOTAL_STEPS="4", DEVICES="2").run(
        "train"
    )
    assert finished.code == 0, finished.log
    (offline,) = wandb_files(tmp_path)
    assert offline.values("loss") == losses(store)


def test_a_tracker_without_a_key_is_refused_before_anything_is_written(
    job_environment: dict[str, str], tmp_path: Path
) -> None:
    runner = job(job_environment, tmp_path, LOGGERS="wandb", WANDB_MODE="online")
    refused = runner.with_(
        WANDB_API_KEY="", NETRC=f"{tmp_path}/none", WANDB_CONFIG_DIR=f"{tmp_path}"
    ).run("train")
    assert refused.code == 78, refused.log
    assert "set WANDB_API_KEY, or WANDB_MODE=offline" in refused.log
    assert not list((tmp_path / "store").rglob("run.json"))
    unnamed = job(job_environment, tmp_path, LOGGERS="mlflow", MLFLOW_TRACKING_URI="").run("train")
    assert unnamed.code == 78 and "LOGGERS=mlflow needs MLFLOW_TRACKING_URI" in unnamed.log
