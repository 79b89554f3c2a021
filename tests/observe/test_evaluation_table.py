"""The table of evaluations on the page."""

import re
from pathlib import Path

from app.observe.evaluation_table import evaluations
from app.observe.reported_run import read_run
from app.run.evaluations import Evaluation, write_evaluation
from app.run.layout import EVALUATIONS, RECORD, CheckpointName
from app.run.retention import quarantine
from app.stores.opening import open_store
from tests.support.stored_run import FreeLease, commit_step


def result(step: int, task: str, value: float, *, limit: int = 0) -> Evaluation:
    return Evaluation(
        step=step,
        checkpoint=str(CheckpointName(step, 1)),
        weights="0" * 64,
        task=task,
        metric="acc_norm",
        value=value,
        stderr=0.01,
        of="lm-evaluation-harness",
        when="2026-01-01T00:00:00+00:00",
        settings={"limit": limit},
    )


def cells(markup: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", markup)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_each_number_is_a_row_and_each_step_a_column_with_the_published_one_beside() -> None:
    found = [
        result(20, "piqa", 0.5),
        result(1_000, "piqa", 0.625),
        result(1_000, "piqa", 0.75, limit=10),
        result(1_000, "<b>mine</b>", 0.25),
    ]
    head, *rows = cells(evaluations(found))
    assert head == ["task", "metric", "of", "settings", "step 20", "step 1,000", "SmolLM2-135M"]
    assert [row[0] for row in rows] == ["&lt;b&gt;mine&lt;/b&gt;", "piqa", "piqa"]
    assert rows[0][-3:] == ["–", "0.2500 ± 0.0100", "–"]
    assert rows[1][3:] == ["", "0.5000 ± 0.0100", "0.6250 ± 0.0100", "0.684"]
    assert rows[2][3:6] == ["limit 10", "–", "0.7500 ± 0.0100"]


def test_nothing_is_shown_before_the_first_evaluation_and_the_newest_eight_steps_after() -> None:
    assert evaluations([]) == ""
    head, row = cells(evaluations([result(step, "mine", 0.5) for step in range(1, 20)]))
    assert head[4:] == [f"step {step}" for step in range(12, 20)]
    assert len(row) == len(head)


def test_a_run_shows_results_of_pruned_checkpoints_but_not_of_those_set_aside(
    tmp_path: Path,
) -> None:
    folder = open_store(f"file://{tmp_path}", "run")
    folder.put(RECORD, [b"{}"])
    for step in (20, 40, 60):
        write_evaluation(folder, CheckpointName(step, 1), [result(step, "mine", 0.5)])
    quarantine(folder, commit_step(folder, 40), "flipped", FreeLease(folder))
    folder.put(f"{EVALUATIONS}/{CheckpointName(60, 1)}/other.json", [b"{"])
    run = read_run(folder)
    assert [one.step for one in run.evaluations] == [20, 60]
    assert [problem for problem in run.problems if EVALUATIONS in problem]
