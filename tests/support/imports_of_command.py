"""Commands in a process of their own, started so that Python says what it imports."""

import subprocess
import sys
from collections.abc import Mapping

from tests.support.repository import ROOT

# Libraries that take seconds to load.
HEAVY = {"torch", "pytorch_lightning", "transformers", "datasets", "tensorboard", "numpy"}


def command_with_imports(
    arguments: list[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """`python -m app` with `arguments`. Its stderr has a line for each module, ending in `| name`,
    before the lines of the log that follow the import."""
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "app", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
