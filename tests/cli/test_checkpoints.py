"""The checkpoints commands; what they look at is tested in tests/run."""

from pathlib import Path

import pytest

from app.cli import parser as cli
from tests.support.error_lines import errors

pytestmark = pytest.mark.usefixtures("nothing_set")


def test_checkpoints_of_a_run_that_does_not_exist_exit_78(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["checkpoints", "list", "--checkpoint_uri", f"file://{tmp_path}"]) == 78
    assert "holds no run named smollm2-135m or tiny" in errors(capsys)[0]
    assert list(tmp_path.iterdir()) == []
