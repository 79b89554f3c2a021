"""`evaluate` as it is typed: what is printed, what is kept, and what is refused."""

import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.run.evaluations import evaluations_of
from app.run.layout import LEASE
from app.state.weights import weights_digest
from app.stores.contract import Store
from app.stores.opening import open_store
from tests.support.local_task import save_local_task
from tests.support.train_command import Job, Train, error_lines, files_below

TEXT = ["--text", "builtin", "--tokens", "300"]


@pytest.fixture
def trained(train: Train, tmp_path: Path) -> Store:
    """A run with checkpoints of steps 2 and 4."""
    assert train()[0] == 0
    return open_store(f"file://{tmp_path}/store", "tiny")


def test_the_perplexity_of_the_newest_checkpoint_is_shown_and_kept_and_nothing_else_changes(
    trained: Store, job: Job, tmp_path: Path
) -> None:
    run = tmp_path / "store/tiny"
    before, lease = files_below(run), trained.get(LEASE)
    code, shown, log = job(["evaluate", *TEXT])
    assert code == 0, log
    (key,) = set(files_below(run)) - set(before)
    assert key.startswith("evaluations/step-0000000004-e000001/")
    assert trained.get(LEASE) == lease
    found = {one.metric: one for one in evaluations_of(trained).found}
    assert set(found) == {"perplexity", "bits_per_byte", "loss"}
    one = found["perplexity"]
    assert one.value == pytest.approx(math.exp(found["loss"].value))
    assert 1 < one.value < 10_000
    assert (one.step, one.of, one.samples is not None) == (4, "builtin", True)
    assert (one.settings["window"], one.settings["stride"]) == (32, 16)
    assert one.weights == weights_digest(run / "checkpoints" / one.checkpoint)
    assert f"{one.value:,.4f}" in shown and "step 4; of builtin" in shown
    code, _, log = job(["checkpoints", "verify"])
    assert code == 0, log
    code, _, log = job(["train"], ADDITIONAL_STEPS="2")
    assert code == 0, log
    assert len(evaluations_of(trained).found) == 3


def test_json_is_one_document_and_no_save_writes_nothing(
    trained: Store, job: Job, tmp_path: Path
) -> None:
    before = files_below(tmp_path / "store")
    code, shown, log = job(["evaluate", *TEXT, "--step", "2", "--json", "--no-save"])
    assert code == 0, log
    document: dict[str, Any] = json.loads(shown)
    assert [one["step"] for one in document["results"]] == [2, 2, 2]
    assert "model card" in document["published_source"]
    assert files_below(tmp_path / "store") == before


def test_tasks_are_run_by_name_and_stand_on_the_page(
    trained: Store, job: Job, tmp_path: Path
) -> None:
    save_local_task(tmp_path)
    words = ["--tasks", "local_choice", "--task_path", str(tmp_path), "--limit", "6"]
    code, shown, log = job(["evaluate", *words])
    assert code == 0, log
    kept = {one.metric: one for one in evaluations_of(trained).found}
    assert set(kept) == {"acc", "acc_norm"}
    assert (kept["acc"].samples, kept["acc"].task) == (6, "local_choice")
    assert kept["acc"].versions["lm_eval"]
    assert "local_choice" in shown and "±" in shown
    code, shown, log = job(["report", "--to", f"{tmp_path}/page.html"])
    assert code == 0, log
    page = (tmp_path / "page.html").read_text()
    assert "local_choice" in page and f"{kept['acc'].value:,.4f}" in page


def test_a_directory_is_evaluated_as_the_checkpoint_that_it_was_pulled_from(
    trained: Store, job: Job, tmp_path: Path
) -> None:
    assert job(["checkpoints", "pull", "--to", f"{tmp_path}/pulled"])[0] == 0
    window = ["--window", "32", "--json"]
    here = json.loads(job(["evaluate", *TEXT, *window])[1])["results"]
    there = json.loads(job(["evaluate", *TEXT, *window, "--model_dir", f"{tmp_path}/pulled"])[1])[
        "results"
    ]
    assert [one["value"] for one in here] == [one["value"] for one in there]
    assert {one["weights"] for one in here} == {one["weights"] for one in there}


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--stride", "9", "--window", "8"], 64, "--stride 9 is longer than --window 8"),
        (["--model_dir", "somewhere", "--step", "2"], 64, "two models"),
        (["--tasks", "piqa,,"], 78, "commas"),
        (["--window", "9999"], 78, "context of"),
        (["--step", "3"], 78, "no checkpoint '3'"),
        (["--text", "/nowhere/*.txt"], 78, "/nowhere/*.txt"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(
    words: list[str], code: int, says: str, trained: Store, job: Job, tmp_path: Path
) -> None:
    before = files_below(tmp_path / "store")
    ended, _, log = job(["evaluate", *TEXT, *words])
    assert ended == code, log
    assert says in error_lines(log)[0]
    assert files_below(tmp_path / "store") == before


@pytest.mark.usefixtures("own_handlers")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_ends_it_with_130_and_keeps_nothing(
    number: int, code: int, trained: Store, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Iterator[Any]:
        os.kill(os.getpid(), number)
        yield from ()

    monkeypatch.setattr("app.generation.perplexity.read_documents", interrupted)
    assert job(["evaluate", *TEXT])[0] == code
    assert list(evaluations_of(trained).found) == []
