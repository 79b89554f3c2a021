"""The prepare command; what it prepares is tested in tests/data."""

from pathlib import Path

import pytest

from app.cli import parser as cli
from tests.support.error_lines import errors

pytestmark = pytest.mark.usefixtures("nothing_set")


def test_a_tokenizer_that_cannot_be_put_there_exits_78_with_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["prepare", "--tokenizer_only", "file/tokenizer"]) == 78
    lines = errors(capsys)
    assert len(lines) == 1 and "--tokenizer_only file/tokenizer cannot be used" in lines[0]
