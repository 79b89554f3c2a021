"""What some tests need of the machine.

Where it is missing they are skipped, and pytest's last lines say which and why.
"""

import shutil
import sys
from pathlib import Path

import pytest

proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs Linux: it looks into /proc"
)
seaweedfs = pytest.mark.skipif(
    shutil.which("weed") is None and sys.platform != "linux",
    reason="needs SeaweedFS: requirements-store.txt has no build of it for this system",
)
make = pytest.mark.skipif(
    shutil.which("make") is None, reason="needs make, which the image does not have"
)
