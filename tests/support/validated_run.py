"""A run of six steps with validation losses, to be looked at and exported."""

from collections.abc import Mapping
from pathlib import Path

from tests.support.forked_job import ForkedJobRunner
from tests.support.quiet_stop import LONG_TEXT
from tests.support.six_steps import SIX_STEPS


def train_validated(job: Mapping[str, str], folder: Path) -> str:
    """Train in `folder`, with a checkpoint and a validation every second step.

    Returns the URI of the store, in which the run is named tiny.
    """
    (folder / "long.txt").write_text(LONG_TEXT)
    uri = f"file://{folder}/store"
    more = {
        "CHECKPOINT_URI": uri,
        "DATASET": f"{folder}/long.txt",
        "VAL_EVERY_STEPS": "2",
        "VAL_TOKENS": "256",
    }
    done = ForkedJobRunner({**job, **SIX_STEPS, **more}).run("train")
    assert done.code == 0, done.log
    return uri
