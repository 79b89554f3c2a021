"""A whole start beside a real object store that has one object of the newest checkpoint no more.

SeaweedFS lists such an object. Its answer breaks off where the part that has rotted begins, each
time after many seconds (500 where it is the first part): that is what a power cut leaves of a write
that had no fsync, and what a bad disk makes of any object.
"""

import signal
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from app.run.view import read_view
from app.stores.opening import open_store
from tests.support.forked_job import ForkedJobRunner
from tests.support.job import Outcome, outcome
from tests.support.seaweedfs import seaweedfs
from tests.support.six_steps import SIX_STEPS, undisturbed

__all__ = ["undisturbed"]

# The server needs a minute for each of the tries.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
URI = "s3://bucket"


@pytest.fixture(scope="module")
def variables_of_run(job_environment: dict[str, str]) -> dict[str, str]:
    return {**job_environment, **SIX_STEPS}


@pytest.fixture
def job(
    aws_environment: None, variables_of_run: dict[str, str], tmp_path: Path
) -> Iterator[ForkedJobRunner]:
    """A job whose checkpoints are in SeaweedFS, on the disk `tmp_path / "disk"`."""
    with seaweedfs(tmp_path / "disk") as endpoint:
        boto3.session.Session().client("s3", endpoint_url=endpoint).create_bucket(Bucket="bucket")
        yield ForkedJobRunner(
            {**variables_of_run, "CHECKPOINT_URI": URI, "AWS_ENDPOINT_URL_S3": endpoint},
            limit_seconds=600,
        )


def rot(disk: Path, content: bytes) -> None:
    """Flip a bit of an object on the server's disk, under the checksum that it keeps there."""
    for volume in disk.rglob("*.dat"):
        place = volume.read_bytes().find(content)
        if place >= 0:
            with volume.open("r+b") as file:
                file.seek(place)
                file.write(bytes([content[0] ^ 1]))
            return
    raise AssertionError("the object was not found on the server's disk")


def test_a_start_goes_on_from_an_older_checkpoint_where_the_store_never_serves_one_object(
    job: ForkedJobRunner,
    undisturbed: Outcome,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", job.environment["AWS_ENDPOINT_URL_S3"])
    store = open_store(URI, "tiny")
    stopped = [job.signal_when(f"step {step}/6", signal.SIGTERM, "train") for step in (1, 3)]
    assert [job.code for job in stopped] == [143, 143]
    *_, before, newest = sorted(read_view(store).committed)
    weights = store.get(newest.key("model.safetensors"), 1 << 30)[0]
    rot(tmp_path / "disk", weights[-4096:])

    finished = job.run("train")

    assert finished.code == 0, finished.log
    assert f"({before}), target step 6" in finished.log
    said = [line for line in finished.log.splitlines() if newest.key("model.safetensors") in line]
    assert any("PASSED OVER" in line and "broke off" in line for line in said), finished.log
    assert outcome(store).differences(undisturbed) == []
