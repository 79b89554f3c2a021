"""Signs from outside that could end a line or command a terminal."""

import pytest

from app.errors import ConfigError, Damaged
from app.printable import printable, show

FORGED = "x\n12:00:00 target reached\r\x1b[2J\x85\u2028\u202e\x9b\udcff"


def test_every_sign_that_could_forge_a_line_is_escaped() -> None:
    shown = r"x\n12:00:00 target reached\r\x1b[2J\x85\u2028\u202e\x9b\udcff"
    assert printable(FORGED) == shown
    assert printable("é 漢 \N{PARTY POPPER}") == "é 漢 \N{PARTY POPPER}"
    assert printable("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"


def test_a_command_prints_one_line_whatever_it_is_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show(FORGED)
    show()
    assert capsys.readouterr().out == f"{printable(FORGED)}\n\n"


def test_an_error_has_the_lines_that_it_was_given_and_no_more() -> None:
    assert str(Damaged(f"LATEST says {FORGED}")).count("\n") == 0
    lines = str(ConfigError("one", f"two{FORGED}")).splitlines()
    assert lines == ["one", f"two{printable(FORGED)}"]
