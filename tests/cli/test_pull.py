"""`checkpoints pull` as it is typed: killed and gone on with, in a run that goes on meanwhile, and
with permissions that allow to read and nothing else."""

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from app.cli import parser as cli
from app.observe.rows import encode_row
from app.run.committing import commit
from app.run.layout import MANIFEST, METRICS_KEY, CheckpointName
from app.run.record import create_record
from app.stores.contract import Data, Store
from app.stores.opening import open_store
from tests.support.error_lines import errors
from tests.support.interposed import Answer, Interposed
from tests.support.repository import ROOT
from tests.support.rows import row
from tests.support.stored_run import FILES, IDENTITY, FreeLease, commit_step

pytestmark = pytest.mark.usefixtures("nothing_set")

MIB = 2**20
WRITES = ("PUT", "POST", "DELETE")


def made(uri: str, *steps: int) -> Store:
    """A run named tiny with checkpoints of these steps."""
    store = open_store(uri, "tiny")
    create_record(store, "tiny", IDENTITY, 100)
    for step in steps:
        commit_step(store, step)
    return store


def commit_files(store: Store, step: int, files: Mapping[str, Data]) -> None:
    commit(store, CheckpointName(step, 1), files, 1.0, FreeLease(store))


def pull(uri: str, *more: str) -> int:
    named = ["--checkpoint_uri", uri, "--run_name", "tiny"]
    return cli.main(["checkpoints", "pull", *named, *more])


def left_by_a_killed_pull(target: Path, step: int) -> Path:
    folder = target.with_name(f".{target.name}.pull-{CheckpointName(step, 1)}")
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"wei")
    return folder


def test_a_pull_that_is_killed_in_the_middle_is_gone_on_with_by_the_next_call(
    bucket: str, s3_answers: Interposed, tmp_path: Path
) -> None:
    uri = f"s3://{bucket}/place"
    store = made(uri)
    weights = random.Random(1).randbytes(9 * MIB) * 8
    files: dict[str, Data] = {
        "config.json": [b"{}"],
        "model.safetensors": [weights],
        "state.json": [b"x"],
    }
    commit_files(store, 20, files)
    target = tmp_path / "model"
    asked: list[tuple[str, int]] = []  # file, and the byte from which on
    command = [sys.executable, "-m", "app", "checkpoints", "pull", "--to", str(target)]
    environment = {**os.environ, "CHECKPOINT_URI": uri, "RUN_NAME": "tiny", "PYTHONPATH": str(ROOT)}

    def noting(environ: dict[str, Any]) -> Answer | None:
        if found := re.match(r"bytes=(\d+)-", environ.get("HTTP_RANGE", "")):
            asked.append((environ["PATH_INFO"].rsplit("/", 1)[1], int(found[1])))
            if asked[-1][1] == 64 * MIB and process.poll() is None:  # the first piece is written
                process.kill()
        return None

    s3_answers.answering = noting
    process = subprocess.Popen(command, env=environment, cwd=tmp_path)
    assert process.wait(60) == -signal.SIGKILL
    assert not target.exists()
    asked.clear()
    done = subprocess.run(
        command, check=False, env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "from where it was cut short, step 20: 75.5 MB" in done.stderr
    assert done.stdout == f"{target}\n" and list(tmp_path.iterdir()) == [target]
    assert (target / "model.safetensors").read_bytes() == weights
    assert sorted(path.name for path in target.iterdir()) == sorted(files)
    assert min(start for file, start in asked if file == "model.safetensors") >= 8 * MIB
    assert "config.json" not in [file for file, _ in asked]


def test_a_pull_needs_no_more_than_to_read_a_bucket(
    bucket: str, s3_answers: Interposed, tmp_path: Path
) -> None:
    uri = f"s3://{bucket}/place"
    made(uri, 20)
    denied = 403, "<Error><Code>AccessDenied</Code></Error>"
    s3_answers.answering = lambda environ: denied if environ["REQUEST_METHOD"] in WRITES else None
    s3_answers.requests.clear()
    assert pull(uri, "--to", f"{tmp_path}/model") == 0
    assert {request.split()[0] for request in s3_answers.requests} <= {"GET", "HEAD"}


def test_a_pull_writes_nothing_into_a_folder_of_checkpoints(tmp_path: Path) -> None:
    uri, root = f"file://{tmp_path}/store", tmp_path / "store"
    made(uri, 20)

    def seen() -> dict[Path, tuple[int, int]]:
        return {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in [root, *root.rglob("*")]}

    before = seen()
    assert pull(uri, "--to", f"{tmp_path}/model") == 0
    assert seen() == before


def test_an_unfinished_pull_is_gone_on_with_although_the_run_has_a_newer_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, target = f"file://{tmp_path}/store", tmp_path / "model"
    made(uri, 20, 40)
    left_by_a_killed_pull(target, 20)
    assert pull(uri, "--to", str(target)) == 0
    said = capsys.readouterr().err
    assert (target / "model.safetensors").read_bytes() == b"weightsmore"
    assert "from where it was cut short, step 20" in said


@pytest.mark.parametrize("asked", [["40"], ["--step", "latest"]])
def test_what_a_pull_of_another_step_left_makes_room_for_the_one_that_is_named(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, target = f"file://{tmp_path}/store", tmp_path / "model"
    made(uri, 20, 40)
    folder = left_by_a_killed_pull(target, 20)
    assert pull(uri, *asked, "--to", str(target)) == 0
    said = capsys.readouterr().err
    assert "pulling step 40" in said and not folder.exists()


def test_without_a_folder_the_name_says_the_step_and_an_unfinished_one_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"file://{tmp_path}/store"
    made(uri, 20, 40)
    left_by_a_killed_pull(tmp_path / "tiny-step-20", 20)
    assert pull(uri) == 0 and pull(uri) == 0
    assert capsys.readouterr().out == f"{tmp_path}/tiny-step-20\n{tmp_path}/tiny-step-40\n"
    assert pull(uri) == 78
    assert f"{tmp_path}/tiny-step-40 exists already" in errors(capsys)[-1]


def test_the_best_checkpoint_is_pulled_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"file://{tmp_path}/store"
    store = made(uri, 20, 40)
    rows = [row(20), row(40)]
    lines = [
        encode_row(each).replace(b'"validation_loss": null', b'"validation_loss": %d' % n)
        for n, each in enumerate(rows)
    ]
    store.put(METRICS_KEY, lines)
    assert pull(uri, "--step", "best", "--to", f"{tmp_path}/model") == 0
    said = capsys.readouterr().err
    assert "pulling step 20" in said


@pytest.mark.parametrize("named", [[], ["--step", "latest"]])
def test_where_the_newest_is_removed_meanwhile_the_one_that_is_the_newest_then_is_pulled(
    named: list[str],
    bucket: str,
    s3_answers: Interposed,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri = f"s3://{bucket}/place"
    store = made(uri, 20, 40)
    removed_while_pulled(s3_answers, store, CheckpointName(40, 1))
    assert pull(uri, *named, "--to", f"{tmp_path}/model") == 0
    said = capsys.readouterr().err
    assert "step 40 was removed from the store while it was pulled" in said
    assert "pulling step 20" in said
    assert list(tmp_path.glob("*model*")) == [tmp_path / "model"]


def test_a_step_that_was_named_and_is_removed_meanwhile_is_not_found(
    bucket: str,
    s3_answers: Interposed,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri = f"s3://{bucket}/place"
    store = made(uri, 20, 40)
    removed_while_pulled(s3_answers, store, CheckpointName(40, 1))
    assert pull(uri, "40", "--to", f"{tmp_path}/model") == 78
    assert "holds no checkpoint '40'; there are steps 20" in errors(capsys)[-1]
    assert not (tmp_path / "model").exists()


def removed_while_pulled(s3_answers: Interposed, store: Store, name: CheckpointName) -> None:
    """Remove the checkpoint when its first file is asked for."""

    def removing(environ: dict[str, Any]) -> Answer | None:
        if environ["PATH_INFO"].endswith(name.key("model.safetensors")):
            s3_answers.answering = lambda _: None
            store.delete([name.key(MANIFEST)])
            store.delete([name.key(file) for file in FILES])
        return None

    s3_answers.answering = removing


def test_two_names_for_the_checkpoint_are_a_bad_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"file://{tmp_path}/store"
    made(uri, 20, 40)
    assert pull(uri, "20", "--step", "best") == 64
    assert "20 and --step best name two checkpoints" in errors(capsys)[-1]
    assert pull(uri, "20", "--step", "20", "--to", f"{tmp_path}/model") == 0
