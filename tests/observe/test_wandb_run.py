"""The run in W&B: offline against its own files, online where nobody answers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.errors import AccessDenied, Unavailable
from app.observe.rows import Row
from app.observe.tracking import CheckpointLink, Ending, Limits, Measured, Sender, Tracking
from app.observe.wandb_run import WandbRun, has_credentials
from app.run.tracked_run import TrackedRun
from app.settings.trackers import TrackerNames
from tests.support.refusing_server import refusing_server
from tests.support.rows import row
from tests.support.wandb_files import wandb_files

KEY = "k" * 40
LINK = CheckpointLink(6, "s3://bucket/run/checkpoints/step-6", "ab" * 32)


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """W&B keeps what it was told in the process, so that is forgotten before and after a test."""
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    wandb.teardown()
    yield
    wandb.teardown()


def run_in(folder: Path, returns: int = 0, project: str = "", **config: str) -> WandbRun:
    tracked = TrackedRun(id="a1b2c3", returns=returns)
    names = TrackerNames(wandb_project=project)
    return WandbRun(
        "my-run", lambda: tracked, names, folder, config, finish_seconds=60.0, init_seconds=2.0
    )


def attempt(run: WandbRun, earlier: list[Row], new: list[Row], how: Ending) -> None:
    tracking = Tracking([Sender(run, earlier, Limits(interval=0.0))])
    for made in new:
        tracking.add(made)
    tracking.link(LINK)
    tracking.measured(Measured(6, 1.0, {"eval/task": 0.25}))
    assert tracking.close(how, patience=60)


def test_attempts_are_one_offline_run_with_each_step_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    rows = [row(step) for step in range(1, 10)]
    attempt(run_in(tmp_path, project="proj", SEED="1"), [], rows[:7], "failed")
    attempt(run_in(tmp_path, project="proj", SEED="1"), rows[:5], rows[5:], "finished")
    (found,) = wandb_files(tmp_path)
    assert (found.id, found.name, found.project) == ("a1b2c3", "my-run", "proj")
    assert found.values("loss") == [(made.step, made.loss) for made in rows]
    assert found.values("_timestamp") == [(made.step, made.time) for made in rows]
    assert found.config["SEED"] == "1"
    assert found.exit_code == 0 and not found.preempting


def test_checkpoint_and_evaluation_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    attempt(run_in(tmp_path), [], [row(6)], "preempted")
    (found,) = wandb_files(tmp_path)
    told = {"checkpoint/step": 6, "checkpoint/uri": LINK.uri, "checkpoint/sha256": LINK.sha256}
    assert told.items() <= found.summary.items()
    assert (found.summary["eval/task"], found.summary["measured/step"]) == (0.25, 6)
    ((name, content),) = found.artifacts
    assert name == "checkpoint-a1b2c3" and LINK.uri in content
    assert found.preempting and found.exit_code == 143


def test_nothing_is_told_of_the_machine_or_the_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("sys.argv", ["train", "--dataset", "https://example.org/?sig=s3cr3t"])
    attempt(run_in(tmp_path), [], [row(1)], "finished")
    (path,) = tmp_path.rglob("*.wandb")
    folder = path.parent
    assert b"s3cr3t" not in b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
    assert not list(folder.rglob("wandb-metadata.json"))


def test_after_a_rollback_it_is_another_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    attempt(run_in(tmp_path), [], [row(1), row(2)], "finished")
    attempt(run_in(tmp_path, returns=1), [row(1)], [row(2, loss=1.5)], "finished")
    former, current = wandb_files(tmp_path)
    assert former.values("loss") == [(1, 9.0), (2, 8.0)]
    assert current.values("loss") == [(1, 9.0), (2, 1.5)]
    assert (current.id, current.name) == ("a1b2c3-1", "my-run (after rollback 1)")


def test_a_key_is_found_wherever_wandb_looks_and_nobody_is_asked_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import wandb

    assert not has_credentials()
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert has_credentials(), "none is needed"
    wandb.teardown()
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert has_credentials()


def test_a_wrong_key_is_named_as_such_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with refusing_server() as uri:
        monkeypatch.setenv("WANDB_BASE_URL", uri)
        with pytest.raises(AccessDenied, match=r"^W&B refuses .*set WANDB_API_KEY") as caught:
            run_in(tmp_path).connect()
    assert KEY not in str(caught.value)


def test_a_server_that_is_away_can_be_asked_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    run = run_in(tmp_path)
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"^W&B cannot be reached"):
            run.connect()
