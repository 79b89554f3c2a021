"""A run of six steps, and what it leaves in its store when nothing disturbs it.

A module that uses `undisturbed` has a fixture `variables_of_run` with its variables.
"""

import pytest

from app.stores.opening import open_store
from tests.support.forked_job import ForkedJobRunner
from tests.support.job import Outcome, outcome

SIX_STEPS = {
    "TRAINER": "torch",
    "GLOBAL_BATCH_SIZE": "4",
    "TOTAL_STEPS": "6",
    "CHECKPOINT_EVERY_STEPS": "2",
}


@pytest.fixture(scope="module")
def undisturbed(
    variables_of_run: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Outcome:
    uri = f"file://{tmp_path_factory.mktemp('undisturbed')}"
    finished = ForkedJobRunner({**variables_of_run, "CHECKPOINT_URI": uri}).run("train")
    assert finished.code == 0, finished.log
    return outcome(open_store(uri, "tiny"))
