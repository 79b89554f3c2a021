"""What happens around a step: rows, saves, evaluation, and stopping in time."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from app.errors import ConfigError, Fenced, LostPeer, Preempted, Unavailable
from app.heartbeat import COMPILING, SHORTEST_ALLOWANCE, heartbeat_path, show_life_of
from app.observe.rows import Beginning, Row
from app.ranks.checksum import DifferentWeights
from app.run.checkpoints import read_manifest
from app.run.layout import LEASE, REPORT_KEY
from app.run.view import read_view
from app.settings.load import load_settings
from app.stores.opening import open_store
from app.training.attempt import Attempt
from app.training.start import open_attempt
from app.training.train_torch import train
from tests.support.job import losses
from tests.support.quiet_stop import LONG_TEXT, QuietStop
from tests.support.stored_run import stored_attempts

Opener = Callable[..., Attempt]


@pytest.fixture
def stop() -> QuietStop:
    return QuietStop()


@pytest.fixture
def opened(job_environment: dict[str, str], tmp_path: Path, stop: QuietStop) -> Iterator[Opener]:
    attempts: list[Attempt] = []

    def open_one(**changes: str) -> Attempt:
        flags = {name.lower(): value for name, value in job_environment.items()}
        flags |= {"checkpoint_uri": f"file://{tmp_path}", "trainer": "torch", "total_steps": "6"}
        attempt = open_attempt(load_settings({**flags, **changes}), stop)
        assert attempt is not None
        attempts.append(attempt)
        return attempt

    yield open_one
    for attempt in attempts:
        attempt.close("the test is over")


def unreachable(*_: object) -> None:
    raise Unavailable("503")


def committed(folder: Path) -> list[int]:
    store = open_store(f"file://{folder}", "tiny")
    return [stored.name.step for stored in read_view(store).checkpoints if stored.committed]


def test_half_made_gradients_are_dropped_when_the_step_does_not_fit(
    opened: Opener, stop: QuietStop, tmp_path: Path
) -> None:
    attempt = opened(grace_seconds="100")
    attempt.micro_step_done = _after(9, attempt.micro_step_done, stop.request)  # type: ignore[method-assign]
    attempt.clock.step_seconds = 600.0
    train(attempt)
    weights = [parameter.detach().clone() for parameter in attempt.model.parameters()]
    with pytest.raises(Preempted, match="stopped at step 2 of 6; newest checkpoint: step 2"):
        attempt.finish()
    assert committed(tmp_path) == [2]
    assert all(torch.equal(a, b) for a, b in zip(weights, attempt.model.parameters(), strict=True))


def test_a_step_that_is_compiled_may_be_silent_for_long_and_the_next_ones_may_not(
    opened: Opener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    attempt = opened(total_steps="1")
    attempt.compute = replace(attempt.compute, compile=True)  # of the model that is made already
    show_life_of("run")
    attempt.begin()
    assert float(heartbeat_path("run").read_text()) == COMPILING
    train(attempt)
    assert float(heartbeat_path("run").read_text()) == SHORTEST_ALLOWANCE


def test_a_step_that_fits_is_finished_and_committed(
    opened: Opener, stop: QuietStop, tmp_path: Path
) -> None:
    attempt = opened(grace_seconds="100")
    attempt.micro_step_done = _after(9, attempt.micro_step_done, stop.request)  # type: ignore[method-assign]
    train(attempt)
    with pytest.raises(Preempted, match="stopped at step 3"):
        attempt.finish()
    assert committed(tmp_path) == [3]


def test_without_time_for_a_save_the_one_before_is_kept_and_said(
    opened: Opener, stop: QuietStop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    attempt = opened(checkpoint_every_steps="2")
    original = attempt.step_done

    def late(loss: torch.Tensor, grad_norm: torch.Tensor) -> bool:
        original(loss, grad_norm)
        if attempt.step == 3:
            attempt.checkpointing.saver.wait()
            attempt.checkpointing.saver.last_commit_seconds = 60.0
            stop.request()
        return stop.requested

    attempt.step_done = late  # type: ignore[method-assign]
    train(attempt)
    with pytest.raises(Preempted, match="newest checkpoint: step 2"):
        attempt.finish()
    assert committed(tmp_path) == [2]
    assert "does not fit" in caplog.text


def test_a_stop_in_the_last_step_warns_of_nothing(
    opened: Opener, stop: QuietStop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    attempt = opened(total_steps="1")
    train(attempt)
    attempt.checkpointing.saver.wait()
    attempt.checkpointing.saver.last_commit_seconds = 60.0
    stop.request()
    attempt.finish()
    assert committed(tmp_path) == [1]
    said = [r for r in caplog.records if r.name.startswith("app.training")]
    assert [r.getMessage() for r in said if r.levelname != "INFO"] == []
    assert "asked to stop: step 1 is the last one, its commit ends the run" in caplog.text
    assert "target reached: step 1 of 1" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(
    value: float, opened: Opener, tmp_path: Path
) -> None:
    attempt = opened(checkpoint_every_steps="1")
    attempt.begin()
    with pytest.raises(ConfigError, match="LEARNING_RATE"):
        attempt.step_done(torch.tensor(value), torch.tensor(1.0))
    attempt.close("the test is over")
    assert committed(tmp_path) == []


def test_an_infinite_gradient_under_a_finite_loss_is_not_saved(
    opened: Opener, tmp_path: Path
) -> None:
    attempt = opened(checkpoint_every_steps="2", log_every_steps="100")
    attempt.begin()
    attempt.step_done(torch.tensor(1.0), torch.tensor(float("inf")))
    with pytest.raises(ConfigError, match="nothing of it was saved"):
        attempt.step_done(torch.tensor(1.0), torch.tensor(1.0))
    attempt.close("the test is over")
    assert committed(tmp_path) == []


def test_z_loss_is_in_the_gradient_norm_of_a_row_and_not_in_its_loss(
    opened: Opener, tmp_path: Path
) -> None:
    rows = []
    for name, weight in (("plain", "0"), ("penalized", "1")):
        attempt = opened(run_name=name, z_loss=weight, total_steps="1")
        train(attempt)
        attempt.finish()
        rows += losses(tmp_path / name)
    (_, plain, plain_norm), (_, penalized, penalized_norm) = rows
    assert plain == penalized
    assert plain_norm != penalized_norm


def test_the_loss_of_a_checkpoint_is_that_of_its_own_step(
    opened: Opener, stop: QuietStop, tmp_path: Path
) -> None:
    attempt = opened(log_every_steps="100", checkpoint_every_steps="100")
    attempt.begin()
    for loss in (4.0, 3.0, 2.5):
        attempt.step_done(torch.tensor(loss), torch.tensor(1.0))
    stop.request()
    with pytest.raises(Preempted):
        attempt.finish()
    store = open_store(f"file://{tmp_path}", "tiny")
    assert read_manifest(store, read_view(store).checkpoints[0].name).train_loss == 2.5


def test_an_evaluation_that_does_not_fit_into_the_grace_is_left_out(
    opened: Opener, stop: QuietStop, tmp_path: Path
) -> None:
    (tmp_path / "long.txt").write_text(LONG_TEXT)
    attempt = opened(dataset=str(tmp_path / "long.txt"), val_every_steps="1", val_tokens="256")
    attempt.begin()
    stop.request(seconds_ago=24.0)
    attempt.checkpointing.saver.last_commit_seconds = 60.0
    assert attempt.evaluate() is None
    attempt.checkpointing.saver.last_commit_seconds = 0.0
    stop.request()
    assert attempt.evaluate() is not None


def test_the_last_save_is_waited_for_no_longer_than_the_grace(
    opened: Opener, stop: QuietStop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = opened(total_steps="1", grace_seconds="1")
    monkeypatch.setattr(attempt.checkpointing.saver.store, "put", unreachable)
    train(attempt)
    stop.request()
    with pytest.raises(Preempted, match="stopped at step 1 of 1; newest checkpoint: step 0"):
        attempt.finish()
    assert committed(tmp_path) == []


@pytest.mark.parametrize(
    ("failure", "saved"),
    [(DifferentWeights("rank 1 differs"), []), (LostPeer("rank 1 is gone"), [1])],
)
def test_the_last_step_is_committed_where_a_process_is_lost_but_not_where_weights_differ(
    failure: Exception, saved: list[int], opened: Opener, tmp_path: Path
) -> None:
    attempt = opened(total_steps="1")
    attempt.check_same_weights = Mock(side_effect=failure)  # type: ignore[method-assign]
    with pytest.raises(type(failure)):
        train(attempt)
    for found in (None, failure):  # found out at the end, or before
        with pytest.raises(type(failure)):
            attempt.finish(found)
        assert committed(tmp_path) == saved


def test_an_attempt_says_why_it_ended(opened: Opener, tmp_path: Path) -> None:
    attempt = opened(total_steps="2")
    train(attempt)
    attempt.finish()
    attempt.close("target reached")
    (record,) = stored_attempts(open_store(f"file://{tmp_path}", "tiny"), newest=9)
    assert (record.steps, record.saves, record.ended) == (2, 1, "target reached")
    assert record.seconds_to_first_step is not None and record.seconds_to_first_step > 0


def test_an_attempt_that_lost_the_run_says_so_and_writes_nothing_else(
    opened: Opener, tmp_path: Path
) -> None:
    attempt = opened()
    store = open_store(f"file://{tmp_path}", "tiny")
    before = {info.key for info in store.list("")}
    store.put(LEASE, [store.get(LEASE)[0].replace(attempt.lease.holder.encode(), b"other:1:x")])
    with pytest.raises(Fenced) as lost:
        attempt.lease.check()
    attempt.close(f"exit 79: {lost.value}")
    (record,) = stored_attempts(store, newest=9)
    assert record.ended is not None and "was taken over by other:1:x" in record.ended
    assert {info.key for info in store.list("")} == before


def test_an_attempt_that_trained_says_what_it_did_however_it_ends(
    opened: Opener, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    attempt = opened(give_up_seconds="0.01")
    monkeypatch.setattr(attempt.checkpointing.saver.store, "put", unreachable)
    train(attempt)
    with pytest.raises(Unavailable):
        attempt.finish()
    attempt.close("exit 75")
    assert caplog.text.count("6 steps in") == 1
    assert "1 save held training up for" in caplog.text


def test_a_row_says_how_saving_goes(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = opened(checkpoint_every_steps="2")
    attempt.begin()
    rows: list[Row] = []
    monkeypatch.setattr(attempt.step_log.metrics, "add", rows.append)

    def step() -> None:
        attempt.step_done(torch.tensor(1.0), torch.tensor(1.0))
        attempt.checkpointing.saver.wait()

    for _ in range(3):
        step()
    attempt.checkpointing.saver.failed_saves = 2
    step()
    assert [(row.saves_committed, row.failed_saves) for row in rows] == [
        (0, 0),
        (0, 0),
        (1, 0),
        (1, 2),
    ]
    assert [row.checkpoint_age_seconds is None for row in rows] == [True, True, False, False]
    assert 0 <= (rows[2].checkpoint_age_seconds or -1) < 60


def test_the_rows_of_a_save_are_put_together_by_the_saver_and_not_by_the_loop(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, content = set(), Beginning.content

    def joined(rows: Beginning) -> bytes:
        threads.add(threading.current_thread().name)
        return content(rows)

    monkeypatch.setattr(Beginning, "content", joined)
    attempt = opened(total_steps="1")
    train(attempt)
    attempt.finish()
    assert threads == {"checkpoint-saver"}


def test_the_end_of_an_attempt_puts_the_report_into_the_store(
    opened: Opener, tmp_path: Path
) -> None:
    attempt = opened(total_steps="2")
    train(attempt)
    attempt.finish()
    attempt.close("target reached")
    report, _ = open_store(f"file://{tmp_path}", "tiny").get(REPORT_KEY)
    assert b"<h1>tiny</h1>" in report and b"target reached" in report


def test_a_report_that_does_not_fit_into_the_grace_is_left_out(
    opened: Opener, stop: QuietStop, tmp_path: Path
) -> None:
    attempt = opened(grace_seconds="100")
    attempt.report_seconds = 200.0
    stop.request()
    attempt.close("stopped")
    store = open_store(f"file://{tmp_path}", "tiny")
    assert [read.ended for read in stored_attempts(store, newest=1)] == ["stopped"]
    assert not list(store.list("report/"))


@pytest.mark.parametrize("asked", ["before", "meanwhile"])
def test_a_store_that_goes_silent_at_the_end_keeps_no_process_beyond_its_grace(
    asked: str, opened: Opener, stop: QuietStop, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = opened()
    silent, heard = threading.Event(), threading.Event()

    def never_answered(*_: object) -> None:
        heard.set()
        silent.wait(60)

    monkeypatch.setattr(attempt.journal, "end", never_answered)
    monkeypatch.setattr(attempt.lease, "release", never_answered)
    if asked == "before":
        stop.request(seconds_ago=30.0)
        attempt.close("stopped")
    else:
        closing = threading.Thread(target=attempt.close, args=("stopped",))
        closing.start()
        assert heard.wait(30)
        stop.request(seconds_ago=30.0)
        closing.join(30)
        assert not closing.is_alive()
    assert not silent.is_set()
    silent.set()


def test_evaluation_is_deterministic_and_leaves_training_alone(
    opened: Opener, job_environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "long.txt").write_text(LONG_TEXT)
    attempt = opened(dataset=str(tmp_path / "long.txt"), val_every_steps="2", val_tokens="256")
    torch.manual_seed(4)
    state = torch.get_rng_state()
    assert attempt.evaluate() == attempt.evaluate()
    assert torch.equal(torch.get_rng_state(), state)
    assert attempt.model.training


def test_the_log_says_when_an_epoch_begins_and_a_resumed_run_says_no_other(
    opened: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    turns = []
    for additional_steps in ("0", "30"):
        attempt = opened(total_steps="20", additional_steps=additional_steps)
        attempt.begin()
        attempt.loss_function(torch.zeros(1, 9, dtype=torch.long)).backward()
        attempt.optimizer.step()  # a checkpoint needs its moments
        while not attempt.step_done(torch.tensor(1.0), torch.tensor(1.0)):
            pass
        attempt.finish()
        attempt.close("target reached")
        turns.append([r.getMessage() for r in caplog.records if r.getMessage().startswith("epoch")])
        caplog.clear()
    n = attempt.corpus.order.n_sequences
    assert n is not None and 40 < n < 80  # 5 to 10 steps of 8 samples
    begun = [f"epoch {e + 1} begins at step {e * n // 8 + 1}" for e in range(1, 50 * 8 // n + 1)]
    assert turns[0] == [line for line in begun if int(line.split()[-1]) <= 20]
    assert turns[1] == [line for line in begun if 20 < int(line.split()[-1]) <= 50]
    assert len(turns[0]) > 1 and len(turns[1]) > 2


def test_the_learning_rate_of_a_step_is_in_the_optimizer_before_it(opened: Opener) -> None:
    attempt = opened()
    rates = []
    for step in range(6):
        attempt.step = step
        rates.append(attempt.learning_rate())
        assert all(group["lr"] == rates[-1] for group in attempt.optimizer.param_groups)
    assert rates == [attempt.schedule.learning_rate(step) for step in range(6)]
    assert len(set(rates)) > 3


def _after(calls: int, original: Callable[[], bool], act: Callable[[], None]) -> Callable[[], bool]:
    """`original`, with `act` done just before the call of that number."""
    count = 0

    def wrapped() -> bool:
        nonlocal count
        count += 1
        if count == calls:
            act()
        return original()

    return wrapped
