"""What Prometheus is told: names with units, of what, and right at the moment it asks."""

import re
from dataclasses import replace
from pathlib import Path

from app.observe.prometheus import RunMetrics
from tests.support.metrics import BEGUN, SAVING, families, samples, whole_metrics
from tests.support.promtool import asked_of, found_promtool
from tests.support.repository import ROOT
from tests.support.rows import row

OURS = ("attempt=3", "rank=0", "run=run")


def test_promtool_finds_nothing_to_say_about_names_and_units(tmp_path: Path) -> None:
    promtool = found_promtool()
    assert asked_of(promtool, tmp_path, "check", "metrics", given=whole_metrics().text()) == ""


def test_each_metric_says_of_which_run_attempt_and_rank_it_is() -> None:
    told = list(samples(whole_metrics().text()))
    assert told and all({"run=run", "attempt=3"} < set(labels) for _, *labels in told)
    assert all("rank=0" in labels or name == "smollm2_rank_step_seconds" for name, *labels in told)


def test_the_newest_row_and_the_steps_are_told() -> None:
    told = samples(whole_metrics().text())
    assert told["smollm2_train_loss", *OURS] == row(21).loss
    assert told["smollm2_train_tokens_total", *OURS] == row(21).tokens
    assert told["smollm2_train_step", *OURS] == 21
    assert told["smollm2_train_target_step", *OURS] == 100
    assert told["smollm2_train_last_step_timestamp_seconds", *OURS] == 1_700_001_000.0
    assert told["smollm2_train_mfu_ratio", OURS[0], "attention=full", *OURS[1:]] == 0.45
    assert told["smollm2_validation_loss", *OURS] == 3.5
    assert told["smollm2_rank_step_seconds", "attempt=3", "rank=1", "run=run"] == 1.75


def test_a_step_counts_in_the_bucket_that_it_fits_into_and_in_all_larger_ones() -> None:
    metrics = RunMetrics("run")
    metrics.begin(BEGUN)
    for seconds in (0.01, 0.02, 0.3, 1_000.0):
        metrics.step_done(21, seconds)
    told = samples(metrics.text())
    name = "smollm2_train_step_seconds"
    by_bound = {
        labels[1]: value for (found, *labels), value in told.items() if found == f"{name}_bucket"
    }
    assert (by_bound["le=0.01"], by_bound["le=0.025"], by_bound["le=250.0"]) == (1, 2, 3)
    assert by_bound["le=+Inf"] == told[f"{name}_count", *OURS] == 4
    assert told[f"{name}_sum", *OURS] == 1_000.33


def test_saving_is_as_it_is_when_somebody_asks() -> None:
    saving = [replace(SAVING, age=None, committed=0)]
    metrics = RunMetrics("run")
    metrics.begin(replace(BEGUN, saving=lambda: saving[0]))
    told = samples(metrics.text())
    assert ("smollm2_checkpoint_age_seconds", *OURS) not in told, "no checkpoint, no age"
    assert ("smollm2_checkpoint_commit_seconds", *OURS) not in told
    saving[0] = SAVING
    told = samples(metrics.text())
    assert told["smollm2_checkpoint_age_seconds", *OURS] == 61.5
    assert told["smollm2_checkpoint_saves_total", *OURS] == 3
    assert told["smollm2_checkpoint_save_failures_total", *OURS] == 5
    assert told["smollm2_checkpoint_save_failures_in_a_row", *OURS] == 4


def test_goodput_is_the_time_of_the_steps_that_stayed_by_all_the_time() -> None:
    told = samples(whole_metrics().text())
    # 20 earlier steps of 1 s each, one of 2 s, in 1,000 s.
    assert told["smollm2_goodput_ratio", *OURS] == 0.022


def test_a_run_that_goes_on_shows_what_it_had() -> None:
    earlier = [replace(row(20), validation_loss=4.5), row(20)]
    metrics = RunMetrics("run")
    metrics.begin(replace(BEGUN, earlier=earlier))
    told = samples(metrics.text())
    assert told["smollm2_validation_loss", *OURS] == 4.5
    # So the tokens of this attempt are the increase of its own series.
    assert told["smollm2_train_tokens_total", *OURS] == row(20).tokens


def test_before_an_attempt_begins_only_the_process_is_told() -> None:
    text = RunMetrics("run").text()
    assert "process_resident_memory_bytes" in text and not list(families(text))


def test_the_page_of_the_documentation_has_all_of_them_and_no_other() -> None:
    page = (ROOT / "docs/watching.md").read_text("utf-8")
    documented = dict(re.findall(r"^\| `(smollm2_\w+)` \| (\w+) \|", page, re.MULTILINE))
    told = {
        family.name + ("_total" if family.type == "counter" else ""): family.type
        for family in families(whole_metrics().text())
    }
    assert documented == told
