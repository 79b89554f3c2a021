"""The last lines of an attempt: what came out, and what to type next."""

import json
import re
import sys
from pathlib import Path

import pytest

from app.errors import Preempted, Unavailable
from app.settings.load import load_settings
from app.training.start import run
from tests.support.quiet_stop import LONG_TEXT, QuietStop
from tests.support.train_command import Train


class StopAfterOneStep(QuietStop):
    """Asked to stop as soon as there is a step to save."""

    def defer(self) -> None:
        super().defer()
        self.request()


def test_a_run_that_reached_its_target_says_what_came_out_and_what_is_next(
    train: Train, tmp_path: Path
) -> None:
    (tmp_path / "long.txt").write_text(LONG_TEXT)
    code, log = train(
        DATASET=f"{tmp_path}/long.txt", VAL_EVERY_STEPS="2", VAL_TOKENS="256", STARTED_BY="compose"
    )
    assert code == 0, log
    said = [line.partition(" ")[2] for line in log.splitlines()[-5:]]
    step = re.search(r"step 4/4 \| loss ([\d.]+) .*val loss ([\d.]+)", log)
    assert step
    assert re.fullmatch(
        rf"run tiny: train loss {step[1]}, validation loss {step[2]}, 4 steps in \d:\d\d; "
        rf"2 checkpoints in file://{tmp_path}/store/tiny",
        said[0],
    )
    for line, purpose in zip(
        said[1:], ("text from the model", "its files", "its curves", "more steps"), strict=True
    ):
        assert re.match(rf"next, {purpose}: .*docker compose (run|up)", line)
    assert f"CHECKPOINT_URI=file://{tmp_path}/store docker compose run --rm train generate" in log


def test_a_finished_run_that_is_started_again_says_what_is_next(train: Train) -> None:
    assert train()[0] == 0
    code, log = train()
    assert code == 0
    nothing, *following = log.splitlines()[-5:]
    assert "nothing to do" in nothing
    assert all(" next, " in line for line in following)
    code, log = train(ADDITIONAL_STEPS="2")
    assert (code, "6 steps, the last 2 of them, in " in log) == (0, True)


def test_json_lines_have_the_numbers_and_the_commands_as_fields(train: Train) -> None:
    code, log = train(LOG_FORMAT="json")
    assert code == 0
    # The first lines are said before LOG_FORMAT is read.
    events = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    (result,) = (event["result"] for event in events if "result" in event)
    assert (result["step"], result["target"], result["validation_loss"]) == (4, 4, None)
    assert 0 < result["train_loss"] < 20 and result["seconds"] > 0
    following = [event["next"] for event in events if "next" in event]
    assert len(following) == 4 and f"{sys.orig_argv[0]} -m app train" in following[-1]


def test_a_run_that_was_stopped_says_so_far_and_how_to_go_on(
    job_environment: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = {name.lower(): value for name, value in job_environment.items()}
    flags |= {"checkpoint_uri": str(tmp_path), "trainer": "torch", "total_steps": "4"}
    caplog.set_level("INFO", "app")
    with pytest.raises(Preempted, match="stopped at step 1 of 4; newest checkpoint: step 1"):
        run(load_settings({**flags, "started_by": "make"}), StopAfterOneStep())
    so_far, to_go_on = [record.getMessage() for record in caplog.records][-2:]
    place = re.escape(f"{tmp_path.as_uri()}/tiny")
    assert re.fullmatch(
        rf"run tiny so far: train loss [\d.]+, 1 step; checkpoints in {place}", so_far
    )
    assert re.fullmatch(r"to go on: .*TOTAL_STEPS=4 .*make train", to_go_on)


def test_a_store_that_goes_away_after_the_last_commit_does_not_undo_the_run(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise Unavailable("the store is away")

    monkeypatch.setattr("app.training.outcome.read_view", away)
    code, log = train()
    assert code == 0
    assert "could not be listed: the store is away" in log
    assert "4 steps in " in log and "next, its files" in log
