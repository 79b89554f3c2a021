"""The run on a real MLflow server on loopback, which is killed and comes back."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import AccessDenied, ConfigError, Unavailable
from app.observe.mlflow_run import MlflowRun
from app.observe.rows import Row
from app.observe.tracking import CheckpointLink, Ending, Limits, Measured, Sender, Tracking
from app.run.tracked_run import begin_anew, read_tracked_run, remember_mlflow_run, tracked_run
from app.settings.trackers import TrackerNames
from app.stores.contract import Store
from app.stores.opening import open_store
from tests.support.mlflow_server import MlflowServer
from tests.support.refusing_server import refusing_server
from tests.support.rows import row

QUICK = Limits(interval=0.0, batch=4, first_pause=0.05, longest_pause=0.2)
pytestmark = pytest.mark.xdist_group("mlflow")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    found = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    found.start()
    yield found
    found.kill()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path.as_uri(), "run")


def run_at(server: MlflowServer, store: Store, **config: str) -> MlflowRun:
    """The experiment is the test's own."""
    names = TrackerNames(
        mlflow_tracking_uri=server.uri, mlflow_experiment_name=store.uri.rsplit("/", 2)[1]
    )
    return MlflowRun(
        "my-run",
        lambda: tracked_run(store),
        lambda tracked, run_id: remember_mlflow_run(store, tracked, run_id),
        names,
        config,
    )


def attempt(run: MlflowRun, earlier: list[Row], new: list[Row], how: Ending) -> None:
    tracking = Tracking([Sender(run, earlier, QUICK)])
    for made in new:
        tracking.add(made)
    assert tracking.close(how, patience=120)


def ids_of(server: MlflowServer, store: Store) -> list[str]:
    """Its runs on the server, the newest first."""
    experiment = store.uri.rsplit("/", 2)[1]
    return [found.info.run_id for found in server.runs(experiment)]


def made_again(made: Row) -> Row:
    """The row that the next attempt makes of the same step."""
    return replace(made, time=made.time + 100, attempt=2, tokens_per_second=6.0)


def test_attempts_are_one_run_with_each_step_once(server: MlflowServer, store: Store) -> None:
    rows = [row(step) for step in range(1, 10)]
    attempt(run_at(server, store, SEED="1", KEEP_TOP="5"), [], rows[:7], "preempted")
    again = [made_again(made) for made in rows[5:]]
    attempt(run_at(server, store, SEED="1", KEEP_TOP="6"), rows[:5], again, "finished")
    (run_id,) = ids_of(server, store)
    for name in ("loss", "grad_norm", "learning_rate"):
        expected = [(made.step, getattr(made, name)) for made in rows]
        assert server.history(run_id, name) == expected
    found = server.run(run_id)
    assert found.info.status == "FINISHED" and found.info.run_name == "my-run"
    assert found.data.params == {"SEED": "1", "KEEP_TOP": "5"}
    assert found.data.tags["now.KEEP_TOP"] == "6", "what changed since the first attempt"
    known = read_tracked_run(store)
    assert known is not None and known.mlflow_run_id == run_id


def test_checkpoint_and_evaluation_are_told(server: MlflowServer, store: Store) -> None:
    run = run_at(server, store)
    tracking = Tracking([Sender(run, [row(1), row(2)], QUICK)])
    tracking.link(CheckpointLink(2, "s3://bucket/run/checkpoints/step-2", "ab" * 32))
    tracking.measured(Measured(1, 1_700_000_000.0, {"eval/task": 0.25}))
    assert tracking.close("preempted", patience=120)
    (run_id,) = ids_of(server, store)
    found = server.run(run_id)
    assert found.info.status == "KILLED"
    assert found.data.tags["checkpoint.step"] == "2"
    assert found.data.tags["checkpoint.uri"] == "s3://bucket/run/checkpoints/step-2"
    assert found.data.tags["checkpoint.sha256"] == "ab" * 32
    assert server.history(run_id, "eval/task") == [(1, 0.25)]


def test_a_kill_between_the_run_there_and_its_id_here_makes_no_second_one(
    server: MlflowServer, store: Store
) -> None:
    killed = run_at(server, store)
    killed.connect()
    first = ids_of(server, store)
    forgetting = read_tracked_run(store)
    assert forgetting is not None
    store.delete(["logs/trackers.json"])
    store.put_if_absent(
        "logs/trackers.json",
        forgetting.model_copy(update={"mlflow_run_id": None}).model_dump_json().encode(),
    )
    attempt(run_at(server, store), [], [row(1)], "finished")
    assert ids_of(server, store) == first


def test_after_a_rollback_it_is_another_run_and_the_former_one_stays(
    server: MlflowServer, store: Store
) -> None:
    attempt(run_at(server, store), [], [row(1), row(2)], "finished")
    begin_anew(store)
    attempt(run_at(server, store), [row(1)], [row(2, loss=1.5)], "finished")
    current, former = ids_of(server, store)
    assert server.history(former, "loss") == [(1, 9.0), (2, 8.0)]
    assert server.history(current, "loss") == [(1, 9.0), (2, 1.5)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_that_is_away_at_the_start_and_dies_in_the_middle_has_each_step_once_in_the_end(
    server: MlflowServer, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    server.kill()
    tracking = Tracking([Sender(run_at(server, store), [row(1)], QUICK)])
    for step in range(2, 6):
        tracking.add(row(step))
    server.start()
    server.wait_for_step(store.uri.rsplit("/", 2)[1], 5)
    server.kill()
    for step in range(6, 10):
        tracking.add(row(step))
    server.start()
    assert tracking.close("finished", patience=120)
    (run_id,) = ids_of(server, store)
    assert server.history(run_id, "loss") == [(step, 10.0 - step) for step in range(1, 10)]
    assert "mlflow does not answer, and training goes on" in caplog.text


def test_a_run_that_somebody_has_deleted_there_is_not_made_again(
    server: MlflowServer, store: Store
) -> None:
    run_at(server, store).connect()
    (run_id,) = ids_of(server, store)
    server.delete(run_id)
    with pytest.raises(ConfigError, match="was deleted in MLflow: restore it there"):
        run_at(server, store).connect()


def test_a_wrong_key_is_named_as_such(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cr3t")
    with refusing_server() as uri:
        names = TrackerNames(mlflow_tracking_uri=uri)
        run = MlflowRun("r", lambda: tracked_run(store), lambda *_: None, names, {})
        with pytest.raises(
            AccessDenied, match=r"^MLflow refuses .*MLFLOW_TRACKING_TOKEN"
        ) as caught:
            run.connect()
    assert "s3cr3t" not in str(caught.value)


def test_an_address_where_nobody_listens_may_answer_later(store: Store) -> None:
    names = TrackerNames(mlflow_tracking_uri="http://127.0.0.1:9")
    run = MlflowRun("r", lambda: tracked_run(store), lambda *_: None, names, {})
    with pytest.raises(Unavailable, match=r"^MLFLOW_TRACKING_URI cannot be used now"):
        run.connect()
