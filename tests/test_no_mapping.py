"""No file is mapped into memory: one that others cut would end the process with SIGBUS.

Memory without a file, which processes share, is another matter.

The data are others' files, DATA_DIR and a volume with checkpoints may be shared, and any disk can
fail. Reading by system calls says what is wrong, so that the last step can be committed.
"""

import re
from pathlib import Path

import pytest

from tests.support.repository import MODULES

# safetensors' `safe_open` and `load_file` map; pyarrow and transformers do where they are asked.
_MAPS = re.compile(r"\b(mmap|memmap|safe_open|load_file|memory_map|mmap_mode|low_cpu_mem_usage)\b")


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_nothing_maps_a_file(path: Path) -> None:
    text = path.read_text("utf-8").replace("import mmap", "").replace("mmap.mmap(-1,", "")
    assert not _MAPS.findall(text)
