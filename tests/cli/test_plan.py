"""`plan`: from flags alone, from what a run measured, and where a number is missing."""

import re

from tests.support.train_command import Job, assert_refused

GIVEN = ["--step_seconds", "1.2", "--save_seconds", "0.4", "--restart_seconds", "150"]


def test_without_a_run_the_flags_say_everything(job: Job) -> None:
    words = ["plan", "--nodes", "64", "--preemptions-per-node-day", "3", *GIVEN]
    code, said, log = job([*words, "--price_per_node_hour", "2"], TOTAL_STEPS="5000")
    assert code == 0, log
    assert "no run to measure" in said
    assert "64 nodes, one preempted every 7:30; the last step is kept in 0 %" in said
    assert "no interruption was measured: what is not in the store is taken as lost" in said
    tried = [int(every.replace(",", "")) for every in re.findall(r"([\d,]+) steps +[\d.]+ %", said)]
    best = re.search(r"([\d,]+) steps .* best", said)
    assert best and min(tried) < int(best[1]) < max(tried), "a longer interval loses more"
    assert len(re.findall(r"steps +[\d.]+ % █+", said)) >= 8
    assert said.count(" best") == 2 and "now" in said
    assert re.search(
        r"from step 0 to 5,000, .*: [23]:\d\d:\d\d, 1\d\d\.\d node-hours, \d+\.\d\d", said
    )
    code, said, _ = job([*words, "--kept-share", "1"], TOTAL_STEPS="5000")
    assert code == 0 and "kept in 100 %" in said and "no step is ever lost" in said
    assert "no interruption was measured" not in said


def test_one_node_that_loses_steps_is_told_the_interval_of_the_formulas(job: Job) -> None:
    words = ["plan", "--preemptions_per_node_day", "6", *GIVEN, "--kept_share", "0.5"]
    code, said, log = job(words)
    assert code == 0, log
    assert "1 node, one preempted every 4:00:00" in said
    assert "CHECKPOINT_EVERY_STEPS by formula: Young 126, Daly 126" in said


def test_what_is_not_given_is_what_the_run_has_measured(job: Job) -> None:
    assert job(["train"], TOTAL_STEPS="4")[0] == 0
    code, said, log = job(["plan", "--preemptions_per_node_day", "100"], TOTAL_STEPS="4")
    assert code == 0, log
    assert re.search(r"measured: run tiny, 4 steps in 0:\d\d with 0 interruptions: goodput", said)
    assert "best" in said and "from step" not in said  # it is finished


def test_a_number_that_neither_a_flag_nor_the_run_gives_is_asked_for(job: Job) -> None:
    code, _, log = job(["plan", *GIVEN])
    assert_refused((code, log), 78, "--preemptions_per_node_day has to be given")
    code, _, log = job(["plan", "--preemptions_per_node_day", "3"])
    assert_refused((code, log), 78, "--step_seconds has to be given: the run has measured none yet")
    code, _, log = job(["plan", *GIVEN, "--kept_share", "1.5"])
    assert code == 64 and "is not between 0 and 1" in log
