"""PROFILE_STEPS: a trace in the store that a browser can open, and never a reason to end a run."""

import gzip
import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from app.run.layout import profile_key
from app.stores.contract import Store
from app.stores.opening import open_store
from app.training.profiling import ProfileLimits, StepProfiler, TraceKeeper
from tests.support.job import JobRunner, outcome
from tests.support.train_command import Train, assert_refused

CPU = torch.device("cpu")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store", "run")


def keeper(store: Store, tmp_path: Path, limits: ProfileLimits) -> TraceKeeper:
    return TraceKeeper(lambda: store, tmp_path / "profiles", 3, 1, limits)


def make_steps(profiler: StepProfiler, steps: range, micro_steps: int = 1) -> None:
    for step in steps:
        profiler.step_begins(step)
        for _ in range(micro_steps):
            torch.ones(8, 8) @ torch.ones(8, 8)
            profiler.micro_step_done()
        profiler.step_done(step)


def names(store: Store, key: str) -> set[str]:
    """Of everything that the trace shows."""
    trace: dict[str, Any] = json.loads(gzip.decompress(store.get(key, 1 << 30)[0]))
    return {event["name"] for event in trace["traceEvents"]}


def said(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("trainer", ["torch", "lightning"])
def test_the_trace_of_the_steps_is_in_the_store_and_a_line_says_where_and_how_to_open_it(
    trainer: str, train: Train, tmp_path: Path
) -> None:
    code, log = train(PROFILE_STEPS="2-3", TRAINER=trainer)
    assert code == 0, log
    store, key = open_store(f"file://{tmp_path}/store", "tiny"), profile_key(1, 0, 2, 3)
    found = names(store, key)
    assert {"step 2", "step 3"} <= found and not {"step 1", "step 4"} & found
    assert "aten::mm" in found
    assert f"steps 2 to 3, rank 0: {store.uri}/{key}" in log and "https://ui.perfetto.dev" in log
    assert list((tmp_path / "data/profiles").glob("smollm2-own-*")) == []
    code, log = train(PROFILE_STEPS="2-3", TRAINER=trainer, ADDITIONAL_STEPS="1")
    assert code == 0 and "PROFILE_STEPS=2-3: these steps are past" in log, log


def test_a_profile_changes_no_number(train: Train, tmp_path: Path) -> None:
    first, second = f"file://{tmp_path}/first", f"file://{tmp_path}/second"
    assert train(CHECKPOINT_URI=first)[0] == 0
    assert train(CHECKPOINT_URI=second, PROFILE_STEPS="2")[0] == 0
    profiled = outcome(open_store(second, "tiny"))
    assert profiled.differences(outcome(open_store(first, "tiny"))) == []


def test_each_process_of_a_run_has_a_trace_of_its_own(
    job_environment: dict[str, str], tmp_path: Path
) -> None:
    job = JobRunner(
        {
            **job_environment,
            "CHECKPOINT_URI": f"file://{tmp_path}/store",
            "DEVICES": "2",
            "TRAINER": "torch",
            "TOTAL_STEPS": "3",
            "PROFILE_STEPS": "2",
        }
    )
    done = job.run("train")
    assert done.code == 0, done.log
    store = open_store(f"file://{tmp_path}/store", "tiny")
    for rank in (0, 1):
        assert "step 2" in names(store, profile_key(1, rank, 2, 2))


def test_an_attempt_that_begins_within_the_steps_profiles_the_rest(
    store: Store, tmp_path: Path
) -> None:
    profiler = StepProfiler(range(10, 13), keeper(store, tmp_path, ProfileLimits()), CPU)
    profiler.begin(10, 100)
    make_steps(profiler, range(11, 15))
    profiler.close(lambda: True)
    found = names(store, profile_key(3, 1, 11, 12))
    assert {"step 11", "step 12"} <= found and "step 13" not in found


@pytest.mark.parametrize(
    ("step", "target", "words"),
    [(500, 1_000, "PROFILE_STEPS=10-12: these steps are past"), (0, 9, "the run ends at step 9")],
)
def test_steps_that_are_not_made_are_said_in_one_line(
    step: int,
    target: int,
    words: str,
    store: Store,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    profiler = StepProfiler(range(10, 13), keeper(store, tmp_path, ProfileLimits()), CPU)
    profiler.begin(step, target)
    make_steps(profiler, range(step + 1, step + 4))
    profiler.close(lambda: True)
    assert words in said(caplog) and len(caplog.records) == 1
    assert list(store.list("")) == []


def test_a_trace_is_bounded_in_micro_steps_and_in_bytes(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    limits = ProfileLimits(micro_steps=4)
    profiler = StepProfiler(range(1, 9), keeper(store, tmp_path, limits), CPU)
    profiler.begin(0, 100)
    make_steps(profiler, range(1, 9), micro_steps=2)
    profiler.close(lambda: True)
    assert {"step 1", "step 2"} <= names(store, profile_key(3, 1, 1, 2))
    assert "the profile ends after step 2" in said(caplog)

    profiler = StepProfiler(range(1, 2), keeper(store, tmp_path, ProfileLimits(bytes=9)), CPU)
    profiler.begin(0, 100)
    make_steps(profiler, range(1, 2))
    profiler.close(lambda: True)
    assert "is not kept: it has" in said(caplog)
    assert len(list(store.list(""))) == 1


def test_an_attempt_that_ends_before_the_steps_do_keeps_nothing_and_says_so(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    profiler = StepProfiler(range(1, 9), keeper(store, tmp_path, ProfileLimits()), CPU)
    profiler.begin(0, 100)
    make_steps(profiler, range(1, 3))
    profiler.step_begins(3)
    profiler.close(lambda: True)
    assert "ends before the profiled steps do" in said(caplog)
    assert list(store.list("")) == []


def test_a_store_that_takes_no_trace_ends_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "profiles").write_text("no folder")
    unused = open_store(f"file://{tmp_path}/store", "run")
    profiler = StepProfiler(range(1, 2), keeper(unused, tmp_path, ProfileLimits()), CPU)
    profiler.begin(0, 100)
    make_steps(profiler, range(1, 2))
    profiler.close(lambda: True)
    assert "a profile was not kept" in said(caplog)


def test_an_attempt_without_time_left_does_not_wait_for_a_trace(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answers = threading.Event()

    def silent() -> Store:
        answers.wait(60)
        return store

    limits = ProfileLimits(poll_seconds=0.01)
    late = TraceKeeper(silent, tmp_path / "profiles", 3, 1, limits)
    profiler = StepProfiler(range(1, 2), late, CPU)
    profiler.begin(0, 100)
    make_steps(profiler, range(1, 2))
    profiler.close(lambda: False)
    assert "there is no time left for it" in said(caplog)
    answers.set()


@pytest.mark.parametrize("value", ["0", "0-3", "12-10", "1-21", "ten", "10-", "-3", "1.5", "1,2"])
def test_steps_that_cannot_be_meant_are_refused(value: str, train: Train) -> None:
    assert_refused(train(PROFILE_STEPS=value), 78, "PROFILE_STEPS")
