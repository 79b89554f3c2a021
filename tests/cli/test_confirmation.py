import io
import sys

import pytest

from app.cli.confirmation import confirmed
from app.errors import ConfigError

_WHAT = "step-0000000040-e000001 would be deleted"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _typed(monkeypatch: pytest.MonkeyPatch, answer: str) -> _Terminal:
    screen = _Terminal()
    monkeypatch.setattr(sys, "stdin", _Terminal(answer))
    monkeypatch.setattr(sys, "stdout", screen)
    return screen


@pytest.mark.parametrize("answer", ["y\n", "YES\n", " yes \n"])
def test_who_says_yes_on_a_terminal_was_told_what_will_be_done(
    answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = _typed(monkeypatch, answer)
    confirmed(_WHAT, yes=False)
    assert screen.getvalue().startswith(f"{_WHAT}\nDo this?")


@pytest.mark.parametrize("answer", ["", "\n", "n\n", "maybe\n"])
def test_anything_but_yes_is_a_no(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _typed(monkeypatch, answer)
    with pytest.raises(ConfigError, match=r"nothing was changed.*--yes"):
        confirmed(_WHAT, yes=False)


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_without_a_terminal_nothing_is_asked_and_nothing_is_done(
    stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _typed(monkeypatch, "yes\n")
    monkeypatch.setattr(sys, stream, io.StringIO("yes\n"))
    with pytest.raises(ConfigError, match="--yes"):
        confirmed(_WHAT, yes=False)


def test_yes_beforehand_is_not_asked_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    confirmed(_WHAT, yes=True)
    assert capsys.readouterr().out == f"{_WHAT}\n"
