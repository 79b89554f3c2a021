"""The prompt loop without a terminal; at a real one it is tested in test_generate.py."""

import builtins
import signal
from collections.abc import Iterator, Sequence

import pytest

from app.cli.prompt_loop import prompt_loop
from app.errors import Cancelled
from app.generation.decoding import Sampling


def loop(
    monkeypatch: pytest.MonkeyPatch, typed: Sequence[str | type[BaseException]]
) -> list[tuple[str, Sampling]]:
    """What is to be continued, and how, when these lines are typed, or these are raised."""
    lines: Iterator[str | type[BaseException]] = iter(typed)
    written: list[tuple[str, Sampling]] = []

    def asked(_: str) -> str:
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    def write(line: str, sampling: Sampling) -> None:
        written.append((line, sampling))
        if line == "interrupted":
            raise KeyboardInterrupt

    monkeypatch.setattr(builtins, "input", asked)
    prompt_loop(write, Sampling(seed=5))
    return written


@pytest.mark.parametrize("end", ["", "  ", "/quit", EOFError])
def test_each_line_gets_the_next_seed_until_the_end(
    end: str | type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = loop(monkeypatch, ["a", "interrupted", "a", end, "not asked for"])
    assert written == [
        ("a", Sampling(seed=5)),
        ("interrupted", Sampling(seed=6)),
        ("a", Sampling(seed=7)),
    ]


def test_a_setting_holds_for_the_lines_after_it_and_a_wrong_one_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["/temperature 0.5", "a", "/top_p 3", "/nothing", "b", ""]
    written = loop(monkeypatch, typed)
    assert written == [
        ("a", Sampling(temperature=0.5, seed=5)),
        ("b", Sampling(temperature=0.5, seed=6)),
    ]
    said = capsys.readouterr().out
    assert "3 is not between 0 and 1" in said and "/nothing is not known" in said


def test_ctrl_c_ends_it_only_twice_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    ctrl_c = KeyboardInterrupt
    assert len(loop(monkeypatch, [ctrl_c, "a", ctrl_c, "b", ""])) == 2
    with pytest.raises(Cancelled):
        loop(monkeypatch, [ctrl_c, ctrl_c])
    assert signal.getsignal(signal.SIGINT) is before
