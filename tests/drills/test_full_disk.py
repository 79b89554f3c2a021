"""A file system that is really full: training goes on, the save waits, nothing is lost.

/small is a small tmpfs in the container of the tests. Root makes one where there is none.
"""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.run.view import read_view
from app.stores.opening import open_store
from tests.support.forked_job import ForkedJobRunner
from tests.support.job import Action, Outcome, both, outcome
from tests.support.six_steps import SIX_STEPS, undisturbed

__all__ = ["undisturbed"]

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("small")]  # one at a time fills it
SMALL = Path("/small")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A folder of a file system that holds about four checkpoints."""
    if SMALL.is_mount() and os.access(SMALL, os.W_OK):
        folder = SMALL / "test"
        folder.mkdir()
        yield folder
        shutil.rmtree(folder)
        return
    if os.geteuid() != 0:
        pytest.skip("no small file system: neither /small is one, nor may this user mount one")
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no small file system: /small is none, and mount is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def variables_of_run(job_environment: dict[str, str]) -> dict[str, str]:
    return {**job_environment, **SIX_STEPS, "KEEP_TOP": "0"}


def fill(filler: Path) -> None:
    """Take all the space that is left."""
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC


def fills_after_the_first_commit(
    job: ForkedJobRunner, filler: Path, folder: Path
) -> tuple[ForkedJobRunner, dict[str, Action]]:
    """The job, and the action for its log, by which the disk is full from then on."""
    return job.halting("app.training.saver.prune", folder, lambda _: fill(filler))


def test_one_worker_runs_all_that_fills_the_disk(request: pytest.FixtureRequest) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@small"), "the group of this module is not seen"


def test_training_goes_on_while_the_volume_is_full_and_the_save_is_made_up_for(
    small: Path, tmp_path: Path, variables_of_run: dict[str, str], undisturbed: Outcome
) -> None:
    uri, filler = f"file://{small}/store", small / "filler"
    job = ForkedJobRunner({**variables_of_run, "CHECKPOINT_URI": uri})
    waiting, actions = fills_after_the_first_commit(job, filler, tmp_path)
    free = both(filler.unlink)
    finished = waiting.run("train", when={**actions, "failed, again in": free, "step 6/6": free})
    assert finished.code == 0, finished.log
    assert "is full (No space left on device): free some space" in finished.log
    assert outcome(open_store(uri, "tiny")).differences(undisturbed) == []


def test_a_volume_that_stays_full_ends_the_job_and_the_next_start_goes_on(
    small: Path, tmp_path: Path, variables_of_run: dict[str, str], undisturbed: Outcome
) -> None:
    uri, filler = f"file://{small}/store", small / "filler"
    job = ForkedJobRunner({**variables_of_run, "CHECKPOINT_URI": uri})
    waiting, actions = fills_after_the_first_commit(job, filler, tmp_path)
    given_up = waiting.with_(GIVE_UP_SECONDS="1").run("train", when=actions)
    assert given_up.code == 75, given_up.log
    assert "GIVE_UP_SECONDS=1" in given_up.log
    refused = job.run("train")
    assert refused.code == 75, refused.log
    assert refused.log.count(" ERROR: ") == 1 and "is full" in refused.log
    assert read_view(open_store(uri, "tiny")).find("latest").step == 2
    filler.unlink()
    finished = job.run("train")
    assert finished.code == 0, finished.log
    assert "resumed from step 2 " in finished.log
    assert outcome(open_store(uri, "tiny")).differences(undisturbed) == []


def test_no_room_for_the_tokens_ends_the_start_and_leaves_the_store_alone(
    small: Path, tmp_path: Path, variables_of_run: dict[str, str]
) -> None:
    fill(small / "filler")
    uri = f"file://{tmp_path}/store"
    job = ForkedJobRunner({**variables_of_run, "CHECKPOINT_URI": uri, "DATA_DIR": str(small)})
    refused = job.run("train")
    assert refused.code == 75, refused.log
    assert refused.log.count(" ERROR: ") == 1 and f"DATA_DIR={small} is full" in refused.log
    assert list(open_store(uri, "tiny").list("")) == []


def test_a_full_data_dir_in_the_middle_ends_the_job_and_costs_no_step(
    small: Path, tmp_path: Path, variables_of_run: dict[str, str], undisturbed: Outcome
) -> None:
    uri, filler = f"file://{tmp_path}/store", small / "filler"
    job = ForkedJobRunner({**variables_of_run, "CHECKPOINT_URI": uri, "DATA_DIR": str(small)})
    # The loop waits, not the saver: it is the one that writes to DATA_DIR.
    place = "app.training.step_log.StepLog.log_row"
    waiting, actions = job.halting(place, tmp_path, lambda _: fill(filler))
    ended = waiting.run("train", when=actions)
    assert ended.code == 75, ended.log
    assert ended.log.count(" ERROR: ") == 1 and "DATA_DIR" in ended.log
    assert "Traceback" not in ended.log
    filler.unlink()
    finished = job.run("train")
    assert finished.code == 0, finished.log
    assert "resumed from step 1 " in finished.log, "the store would have taken the step"
    assert "is held by" not in finished.log, "the lease was not given back"
    assert outcome(open_store(uri, "tiny")).differences(undisturbed) == []
