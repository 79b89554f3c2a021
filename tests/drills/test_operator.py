"""The operator drill: whatever people do to a run, the next start does what the table says.

python -m tests.drills.test_operator      # the table, for docs/durability.md
"""

import hashlib
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.forked_job import ForkedJobRunner, signal_in_step
from tests.support.job import ROOT
from tests.support.operator_rows import AS_IT_WAS, FINISHED, INTERRUPTED, ROWS, Row, kept
from tests.support.train_command import Train

JOB = {"TRAINER": "torch", "TOTAL_STEPS": "6", "CHECKPOINT_EVERY_STEPS": "2"}
BESIDE = {"DATA_DIR": "{}", "CHECKPOINT_URI": "file://{}"}  # are a folder of the row's own
# What follows the line that says why it ended: the account, and what to type next.
ACCOUNT = re.compile(
    r"attempt \d+: \d+ steps? in |run \S+(?: so far)?: train loss|next, |to go on: "
)


@pytest.fixture(scope="module")
def runs(job_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store for each kind of run, to be copied."""
    made = tmp_path_factory.mktemp("runs")
    job = ForkedJobRunner(
        {**job_environment, **JOB, "CHECKPOINT_URI": f"file://{made / INTERRUPTED}"}
    )
    killed = job.preceded_by(signal_in_step, 5, signal.SIGKILL).run("train")
    assert killed.code == -signal.SIGKILL, killed.log
    shutil.copytree(made / INTERRUPTED, made / FINISHED)
    finished = job.with_(CHECKPOINT_URI=f"file://{made / FINISHED}").run("train")
    assert finished.code == 0, finished.log
    return made


def contents(folder: Path) -> dict[str, str]:
    """A hash of every file but the store's own, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".store-")
    }


def left(run: Path) -> str:
    def steps(pattern: str) -> Iterator[int]:
        for path in sorted(run.glob(pattern), reverse=True):
            yield int(path.parent.name.split("-")[1])

    aside = tuple(steps("quarantine/step-*/reason.json"))
    return kept(*steps("checkpoints/step-*/manifest.json"), aside=aside)


@pytest.mark.slow
@pytest.mark.xdist_group("operator")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.run}: {row.done}")
def test_after_what_an_operator_did_the_next_start_does_what_the_table_says(
    row: Row, runs: Path, train: Train, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(runs / row.run, store)
    known = contents(store)
    row.act(store / "tiny")
    (run,) = store.glob("[!.]*")
    before = contents(run)
    beside = {
        name: BESIDE[name].format(tmp_path / value)
        for name, value in row.variables.items()
        if name in BESIDE
    }
    code, log = train(**{**JOB, **row.variables, **beside})
    *_, said = (line for line in log.splitlines() if not ACCOUNT.search(line))
    assert (code, re.search(row.pattern, said) is not None) == (row.code, True), log
    after = contents(run)
    assert (AS_IT_WAS if after == before else left(run)) == row.left
    own = {name: content for name, content in before.items() if f"{run.name}/{name}" not in known}
    if run.name == "tiny":  # nobody renamed it
        assert own.items() <= after.items(), "what the operator put there is gone"


def table() -> str:
    lines = [
        "| what was done | to a run that was | exit | what the start says last | what is left |",
        "|---|---|---|---|---|",
    ]
    lines += (f"| {r.done} | {r.run} | {r.code} | `{r.says}` | {r.left} |" for r in ROWS)
    return "\n".join(lines)


def test_the_page_has_this_table() -> None:
    assert table() in (ROOT / "docs" / "durability.md").read_text("utf-8")


if __name__ == "__main__":
    print(table())
