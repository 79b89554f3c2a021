"""SIGTERM in every phase of a job: exit 143 in time, and nothing that was committed is lost.

The moment is met by a line of the log, by a request that the server keeps waiting, or at a
function of the job that sends the signal to itself. Never by a pause.
"""

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.data.limits import DataLimits
from app.run.lease import Lease
from app.run.view import read_view
from app.stores.contract import Store
from app.stores.opening import open_store
from tests.support.faulty_link import faulty_link
from tests.support.forked_job import ForkedJobRunner, at, signal_at, signal_in_step, wait_at
from tests.support.interposed import Held, Interposed
from tests.support.job import Finished, JobProcess, JobRunner, Outcome, outcome
from tests.support.prepared import change_defaults
from tests.support.quiet_stop import LONG_TEXT
from tests.support.six_steps import SIX_STEPS, undisturbed
from tests.support.store_fixtures import S3Server

__all__ = ["undisturbed"]

pytestmark = pytest.mark.slow
SLACK = 15.0  # seconds, for a busy machine; a request is held for 60


@pytest.fixture(scope="module")
def variables_of_run(
    job_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("sigterm")
    (folder / "long.txt").write_text(LONG_TEXT)
    return {
        **job_environment,
        **SIX_STEPS,
        "DATASET": str(folder / "long.txt"),
        "DATA_DIR": str(folder / "data"),
        "GRACE_SECONDS": "100",  # a busy machine is no fault of the job's
    }


@pytest.fixture
def job(variables_of_run: dict[str, str], bucket: str, s3_server: str) -> ForkedJobRunner:
    uri = {"CHECKPOINT_URI": f"s3://{bucket}", "AWS_ENDPOINT_URL_S3": s3_server}
    return ForkedJobRunner({**variables_of_run, **uri})


def store_of(job: JobRunner) -> Store:
    return open_store(job.environment["CHECKPOINT_URI"], "tiny")


class Stopwatch:
    """Sends SIGTERM, and knows how long ago."""

    def __init__(self) -> None:
        self._sent: float | None = None

    def stop(self, process: JobProcess) -> None:
        process.send_signal(signal.SIGTERM)
        self._sent = self._sent or time.monotonic()

    def assert_in_time(self, stopped: Finished, grace: float = 100) -> None:
        assert self._sent is not None
        assert time.monotonic() - self._sent < grace + SLACK, stopped.log
        assert stopped.code == 143, stopped.log


@pytest.fixture
def watch() -> Stopwatch:
    return Stopwatch()


@pytest.fixture
def hold(s3_answers: Interposed) -> Iterator[Callable[..., Held]]:
    held: list[Held] = []

    def begin(method: str, end: str, then: Callable[[], None], *, and_later: bool = False) -> Held:
        def matches(path: str) -> bool:
            return path.endswith(end) or (and_later and one.came)

        held.append(one := Held(method, matches, then))
        s3_answers.answering = one
        return one

    yield begin
    for one in held:
        one.release()


def assert_resumes(job: ForkedJobRunner, step: int | None, undisturbed: Outcome) -> None:
    """The next start goes on from `step`, and the finished run is the undisturbed one."""
    finished = job.run("train")
    assert finished.code == 0, finished.log
    assert ("fresh start" if step is None else f"resumed from step {step} ") in finished.log
    assert outcome(store_of(job)).differences(undisturbed) == []
    assert not list(store_of(job).list("quarantine/"))


@pytest.mark.parametrize("module", ["numpy", "torch.nn", "pytorch_lightning.utilities"])
def test_while_libraries_are_imported(
    module: str, job_environment: dict[str, str], tmp_path: Path, watch: Stopwatch
) -> None:
    # Python itself says on stderr what it has imported.
    uri = {"CHECKPOINT_URI": f"file://{tmp_path}/store", "PYTHONPROFILEIMPORTTIME": "1"}
    job = JobRunner({**job_environment, **uri})
    stopped = job.run("train", when={f" {module}\n": watch.stop})
    watch.assert_in_time(stopped, grace=0)
    assert "nothing new to save" in stopped.log
    assert not list(tmp_path.glob("store/*/checkpoints/*"))


def test_while_the_text_is_downloaded(
    job: ForkedJobRunner,
    bucket: str,
    s3_client: Any,
    hold: Callable[..., Held],
    watch: Stopwatch,
    undisturbed: Outcome,
    tmp_path: Path,
) -> None:
    s3_client.put_object(Bucket=bucket, Key="corpus/long.txt", Body=LONG_TEXT.encode())
    job = job.with_(DATASET=f"s3://{bucket}/corpus/long.txt", DATA_DIR=str(tmp_path))
    stopped = stopped_in_a_request(job, hold, watch, "GET", "/corpus/long.txt")
    watch.assert_in_time(stopped, grace=0)
    assert list(store_of(job).list("")) == []
    assert_resumes(job, None, undisturbed)


def test_while_the_text_is_tokenized(
    job: ForkedJobRunner, tmp_path: Path, undisturbed: Outcome
) -> None:
    job = job.with_(DATA_DIR=str(tmp_path))
    place = "app.data.tokenizer.TextEncoder.encode_batch"
    stopped = signalled(job, place).run("train")
    assert stopped.code == 143, stopped.log
    assert list(store_of(job).list("")) == []
    assert_resumes(job, None, undisturbed)


def test_while_the_source_hangs_what_was_tokenized_is_kept(
    job: ForkedJobRunner, tmp_path: Path, undisturbed: Outcome
) -> None:
    job = job.with_(DATA_DIR=str(tmp_path))
    stopped = job.preceded_by(stopped_while_the_source_hangs).run("train")
    assert stopped.code == 143, stopped.log
    assert list(store_of(job).list("")) == []
    finished = job.preceded_by(small_batches).run("train")
    assert finished.code == 0, finished.log
    assert "tokens of the last start are in no shard yet: it goes on there" in finished.log
    assert outcome(store_of(job)).differences(undisturbed) == []


def small_batches() -> None:
    change_defaults(limits=DataLimits(batch_characters=600))


def stopped_while_the_source_hangs() -> None:
    """SIGTERM after two batches, and no third one."""

    def stop_and_hang() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait()

    small_batches()
    at("app.data.unsealed.UnsealedTokens.note", 3, stop_and_hang)


def test_while_another_process_holds_the_run(
    job: ForkedJobRunner, watch: Stopwatch, undisturbed: Outcome
) -> None:
    holder = Lease(store_of(job), 30, "another")
    holder.acquire(0, lambda line: None, lambda: False)
    stopped = job.run("train", when={"the run is held by another": watch.stop})
    watch.assert_in_time(stopped, grace=0)
    holder.check()
    holder.release()
    assert_resumes(job, None, undisturbed)


@pytest.mark.parametrize("trainer", ["lightning", "torch"])
def test_in_the_first_step(trainer: str, job: ForkedJobRunner, undisturbed: Outcome) -> None:
    job = job.with_(TRAINER=trainer)
    stopped = signalled(job, "app.model.loss.LossFunction.__call__").run("train")
    assert stopped.code == 143, stopped.log
    assert "nothing new to save" in stopped.log
    assert_resumes(job, None, undisturbed)


def test_while_the_model_is_compiled(
    job_environment: dict[str, str], tmp_path: Path, watch: Stopwatch
) -> None:
    # A compiler that says that it has started, and never ends.
    pipe, compiler = tmp_path / "pipe", tmp_path / "c++"
    os.mkfifo(pipe)
    compiler.write_text(f"#!/bin/sh\necho started >{pipe}\nexec sleep 600 >&- 2>&-\n")
    compiler.chmod(0o755)
    job = JobRunner(
        {
            **job_environment,
            "CHECKPOINT_URI": f"file://{tmp_path}/store",
            "TRAINER": "torch",
            "COMPILE": "true",
            "CXX": str(compiler),
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        }
    )

    def when_it_compiles(process: JobProcess) -> None:
        assert pipe.read_text() == "started\n"
        watch.stop(process)

    stopped = job.run("train", when={"fresh start": when_it_compiles})
    watch.assert_in_time(stopped, grace=0)
    assert "torch.compile failed" not in stopped.log
    assert "nothing new to save" in stopped.log


def test_in_the_middle_of_training(job: ForkedJobRunner, undisturbed: Outcome) -> None:
    stopped = stopped_at_step_3(job).run("train")
    assert stopped.code == 143, stopped.log
    assert "stopped at step 3 of 6; newest checkpoint: step 3" in stopped.log
    assert_resumes(job, 3, undisturbed)


@pytest.mark.parametrize("trainer", ["lightning", "torch"])
def test_in_an_evaluation(trainer: str, job: ForkedJobRunner, undisturbed: Outcome) -> None:
    job = job.with_(VAL_EVERY_STEPS="3", VAL_TOKENS="256", TRAINER=trainer)
    stopped = signalled(job, "app.training.steps.evaluate").run("train")
    assert stopped.code == 143, stopped.log
    assert "stopped at step 1 of 6; newest checkpoint: step 1" in stopped.log
    assert_resumes(job, 1, undisturbed)


def test_while_a_checkpoint_is_downloaded(
    job: ForkedJobRunner, hold: Callable[..., Held], watch: Stopwatch, undisturbed: Outcome
) -> None:
    assert stopped_at_step_3(job).run("train").code == 143
    stopped = stopped_in_a_request(job, hold, watch, "GET", "/optimizer.safetensors")
    watch.assert_in_time(stopped, grace=0)
    assert "nothing new to save" in stopped.log
    assert_resumes(job, 3, undisturbed)


def test_while_a_save_is_in_flight(
    job: ForkedJobRunner,
    hold: Callable[..., Held],
    watch: Stopwatch,
    undisturbed: Outcome,
    tmp_path: Path,
) -> None:
    # The loop waits in step 3 for the signal, and the server with the save for what follows.
    os.mkfifo(pipe := tmp_path / "pipe")
    place = "app.training.step_log.StepLog.log_row"
    waiting = ForkedJobRunner(job.environment, before=functools.partial(wait_at, place, pipe, 3))
    held: list[Held] = []

    def stop(process: JobProcess) -> None:
        watch.stop(process)
        pipe.write_bytes(b"")

    stopped = waiting.run(
        "train",
        begin=lambda process: held.append(
            hold("PUT", "/step-0000000002-e000001/config.json", lambda: stop(process))
        ),
        when={"asked to stop": lambda _: held[0].release()},
    )
    watch.assert_in_time(stopped)
    assert "checkpoint step 2 saved" in stopped.log
    assert "stopped at step 3 of 6; newest checkpoint: step 3" in stopped.log
    assert_resumes(job, 3, undisturbed)


def test_a_second_one_does_not_break_the_last_save(
    job: ForkedJobRunner, hold: Callable[..., Held], watch: Stopwatch, undisturbed: Outcome
) -> None:
    held: list[Held] = []

    def again(process: JobProcess) -> None:
        watch.stop(process)
        held[0].release()

    stopped = stopped_at_step_3(job).run(
        "train",
        begin=lambda process: held.append(
            hold("PUT", "/step-0000000003-e000001/manifest.json", lambda: again(process))
        ),
    )
    watch.assert_in_time(stopped)
    assert "stopped at step 3 of 6; newest checkpoint: step 3" in stopped.log
    assert_resumes(job, 3, undisturbed)


def test_a_store_that_goes_silent_is_given_up_within_the_grace(
    job: ForkedJobRunner, hold: Callable[..., Held], watch: Stopwatch, undisturbed: Outcome
) -> None:
    assert stopped_at_step_3(job).run("train").code == 143
    hurried = job.with_(GRACE_SECONDS="8", LEASE_TTL="2")
    stopped = stopped_in_a_request(
        hurried, hold, watch, "PUT", "/step-0000000004-e000002/config.json", and_later=True
    )
    watch.assert_in_time(stopped, grace=8)
    assert "was not committed in time (GRACE_SECONDS=8)" in stopped.log
    assert "the record of the end did not reach the store in time" in stopped.log
    assert "the end of the lease did not reach the store in time" in stopped.log
    assert_resumes(job, 3, undisturbed)


def test_an_upload_that_trickles_is_given_up_at_the_end_of_the_grace(
    job: ForkedJobRunner,
    running_s3: S3Server,
    watch: Stopwatch,
    undisturbed: Outcome,
    tmp_path: Path,
) -> None:
    with faulty_link(running_s3.endpoint, seed=7) as link:

        def trickle_and_stop(process: JobProcess) -> None:
            link.fault = "slow"
            watch.stop(process)

        trickling, actions = job.with_(AWS_ENDPOINT_URL_S3=link.url, GRACE_SECONDS="4").halting(
            "app.training.saver.prune", tmp_path, trickle_and_stop
        )
        stopped = trickling.run("train", when=actions)
    watch.assert_in_time(stopped, grace=4)
    assert_resumes(job, 2, undisturbed)


@pytest.mark.parametrize("in_time", [True, False])
def test_in_the_last_commit_of_a_run(
    in_time: bool,
    job: ForkedJobRunner,
    hold: Callable[..., Held],
    watch: Stopwatch,
    undisturbed: Outcome,
) -> None:
    held: list[Held] = []

    def stop(process: JobProcess) -> None:
        watch.stop(process)
        if in_time:
            held[0].release()

    # With its manifest on the way it would be the server's to say whether it is committed.
    last = "manifest.json" if in_time else "config.json"
    ended = job.with_(GRACE_SECONDS="100" if in_time else "4").run(
        "train",
        begin=lambda process: held.append(
            hold("PUT", f"/step-0000000006-e000001/{last}", lambda: stop(process))
        ),
    )
    held[0].release()
    if in_time:
        assert ended.code == 0, ended.log
        assert "target reached: step 6 of 6" in ended.log
        warnings = [line for line in ended.log.splitlines() if "WARNING" in line]
        assert [line for line in warnings if "skipped" not in line] == []  # by a slow machine
        assert outcome(store_of(job)).differences(undisturbed) == []
        assert job.run("train").log.count("nothing to do") == 1
    else:
        watch.assert_in_time(ended, grace=4)
        assert "stopped at step 6 of 6; newest checkpoint: step" in ended.log
        assert_resumes(job, 4 if "checkpoint step 4 saved" in ended.log else 2, undisturbed)


def test_a_save_that_does_not_fit_is_not_begun_and_the_log_says_so(
    job: ForkedJobRunner, undisturbed: Outcome
) -> None:
    hurried = job.preceded_by(signal_in_step, 3, signal.SIGTERM).with_(GRACE_SECONDS="0.01")
    stopped = hurried.run("train")
    assert stopped.code == 143, stopped.log
    assert "does not fit: only the one in flight is finished" in stopped.log
    assert "stopped at step 3 of 6; newest checkpoint: step 2" in stopped.log
    assert_resumes(job, 2, undisturbed)


def stopped_in_a_request(
    job: ForkedJobRunner,
    hold: Callable[..., Held],
    watch: Stopwatch,
    method: str,
    end: str,
    **more: bool,
) -> Finished:
    """The job, which gets SIGTERM while the server keeps its answer back to its end."""
    held: list[Held] = []
    stopped = job.run(
        "train",
        begin=lambda process: held.append(hold(method, end, lambda: watch.stop(process), **more)),
    )
    held[0].release()
    return stopped


def stopped_at_step_3(job: ForkedJobRunner) -> ForkedJobRunner:
    return ForkedJobRunner(
        job.environment,
        before=functools.partial(signal_at, "app.training.step_log.StepLog.log_row", 3),
    )


def signalled(job: ForkedJobRunner, place: str) -> ForkedJobRunner:
    """The same job, which sends SIGTERM to itself when it comes to `place`."""
    return ForkedJobRunner(job.environment, before=functools.partial(signal_at, place))


def newest_step(job: JobRunner) -> int:
    return read_view(store_of(job)).find("latest").step
