"""The last lines of an attempt: what came out, and what to type next."""

import json
import re
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from app.errors import Preempted, Unavailable
from app.settings.load import load_settings
from app.training.outcome import say_how_to_go_on
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


@pytest.mark.parametrize("trainer", ["torch", "lightning"])
def test_the_validation_loss_of_the_result_is_that_of_the_last_step(
    train: Train, tmp_path: Path, trainer: str
) -> None:
    """Though the last step is no multiple of VAL_EVERY_STEPS; without validation there is none."""
    (tmp_path / "long.txt").write_text(LONG_TEXT)
    data = {"DATASET": f"{tmp_path}/long.txt", "VAL_TOKENS": "256", "TRAINER": trainer}
    code, log = train(**data, VAL_EVERY_STEPS="100")
    assert code == 0, log
    last = re.search(r"step 4/4 \| .*val loss ([\d.]+)", log)
    assert last and f", validation loss {last[1]}, 4 steps in " in log
    code, log = train(**data, VAL_EVERY_STEPS="100")
    assert code == 0 and "nothing to do" in log and "val loss" not in log
    code, log = train(**data, VAL_EVERY_STEPS="0", ADDITIONAL_STEPS="2")
    assert code == 0 and "run tiny: train loss" in log and "validation loss" not in log


def test_a_validation_loss_of_an_earlier_step_says_which(
    job_environment: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "app")
    attempt = Mock(step=12, start_step=0, target=20, train_loss=2.0, validation_loss=3.0)
    settings = load_settings({name.lower(): value for name, value in job_environment.items()})
    for validated, said in ((1, ", validation loss 3.0000 at step 1, 12"), (None, ", 12")):
        attempt.validated_step = validated
        say_how_to_go_on(settings, "tiny", attempt)
        assert f"so far: train loss 2.0000{said} steps" in caplog.text


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
