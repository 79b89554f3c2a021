"""`generate` as it is typed: at a real terminal, in a pipe, and with many prompts."""

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.cli import parser as cli
from app.model.huggingface import config_files
from app.model.smollm2 import SmolLM2
from app.settings.presets import PRESETS
from app.state.tensor_files import tensor_file
from tests.support.error_lines import errors
from tests.support.repository import ROOT
from tests.support.terminal import CTRL_C, CTRL_D, ENTER, UP, Terminal
from tests.support.training_state import joined

Say = Callable[..., str]


@pytest.fixture(scope="module")
def model(small_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small model that has learned nothing."""
    folder = tmp_path_factory.mktemp("model")
    shape = {**vars(PRESETS["tiny"]), "vocab_size": 300}
    config = type(PRESETS["tiny"])(**shape)
    untrained = SmolLM2(config)
    untrained.initialize(3)
    (folder / "model.safetensors").write_bytes(joined(tensor_file(untrained.state_dict())))
    for name, content in config_files(config, 0, 0).items():
        (folder / name).write_bytes(content)
    (folder / "tokenizer.json").write_bytes((small_tokenizer / "tokenizer.json").read_bytes())
    return folder


@pytest.fixture
def say(
    model: Path,
    nothing_set: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Say:
    """What `generate` prints for these arguments, with so many bytes on its standard input."""

    def run(*arguments: str, stdin: bytes = b"", code: int = 0) -> str:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        assert cli.main(["generate", "--model_dir", str(model), *arguments]) == code
        return capsys.readouterr().out

    return run


def test_without_a_terminal_standard_input_is_the_prompt(say: Say) -> None:
    piped = say("--max_tokens=5", stdin=b"def main(\n")
    assert piped == say("--max_tokens=5", "--prompt", "def main(", stdin=b"not read")
    assert piped.startswith("def main(")


def test_with_nothing_to_continue_it_begins_a_text_of_its_own(say: Say) -> None:
    begun = say("--max_tokens=5")
    assert begun == say("--max_tokens=5", "--prompt", "") and begun != "\n"


def test_a_text_ends_before_the_first_of_several_strings(say: Say) -> None:
    whole = say("--prompt", "abc", "--temperature=0", "--max_tokens=30").removeprefix("abc")[:-1]
    stops = [whole[7:10], whole[3:6]]
    cut = min(whole.find(stop) for stop in stops)
    given = [flag for stop in stops for flag in ("--stop", stop)]
    assert say("--prompt", "abc", "--temperature=0", "--max_tokens=30", *given) == (
        f"abc{whole[:cut]}\n"
    )


def test_each_prompt_of_a_file_gets_the_text_that_it_gets_alone(say: Say, tmp_path: Path) -> None:
    prompts = [f"prompt {number} " * number for number in range(1, 11)]
    (tmp_path / "lines.txt").write_text("\n".join(prompts))
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps({"prompt": p}) for p in prompts))
    alone = [say("--prompt", prompt, "--max_tokens=9", "--seed=4") for prompt in prompts]
    drawn = ("--max_tokens=9", "--seed=4")
    assert say("--prompts", f"{tmp_path}/lines.txt", *drawn) == "\n".join([*alone, ""])
    lines = say("--prompts", f"{tmp_path}/lines.jsonl", "--json", *drawn).splitlines()
    found = [json.loads(line) for line in lines]
    assert [each["prompt"] + each["text"] + "\n" for each in found] == alone
    assert all((each["tokens"], each["ended"]) == (9, "length") for each in found)


def test_one_prompt_as_json_is_one_line(say: Say) -> None:
    (line,) = say("--prompt", "a\nb", "--json", "--max_tokens=3").splitlines()
    assert json.loads(line)["prompt"] == "a\nb"


def test_what_cannot_go_together_is_a_bad_command_line(
    say: Say, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["--prompt", "a", "--prompts", "b"], ["--stop", ""]):
        assert cli.main(["generate", *arguments]) == 64
        assert len(errors(capsys)) == 1


@pytest.fixture
def terminal(model: Path, tmp_path: Path) -> Terminal:
    """`generate` on a terminal, at its prompt."""
    names = ("PATH", "HOME", "LANG", "OMP_NUM_THREADS")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    environment |= {"PYTHONPATH": str(ROOT), "TERM": "dumb", "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "app", "generate", "--model_dir", str(model)]
    started = Terminal([*command, "--max_tokens=1000000"], environment, tmp_path)
    started.until("ends.")
    started.until("> ")
    return started


def ask(terminal: Terminal, line: str) -> None:
    """Type a word that the loop does not know, to which it answers at its prompt alone."""
    terminal.type(f"/{line}{ENTER}")
    terminal.until(f"/{line} is not known")
    terminal.until("> ")


def test_lines_are_continued_until_an_empty_one_by_one_model(terminal: Terminal) -> None:
    terminal.type(f"/max_tokens 4{ENTER}")
    terminal.until("> ")
    terminal.type(f"first line{ENTER}")
    terminal.until("first line\r\n")  # as it was typed
    terminal.until("first line")  # and with what follows
    ask(terminal, "one")
    terminal.type(f"second{ENTER}")
    terminal.until("second\r\n")
    terminal.until("second")
    ask(terminal, "two")
    terminal.type(ENTER)
    assert terminal.end() == 0
    assert terminal.said.decode().count(" model ") == 1  # it is loaded once; all of it is UTF-8


def test_the_keys_of_the_arrows_bring_back_what_was_typed(terminal: Terminal) -> None:
    terminal.type(f"/max_tokens 1{ENTER}")
    terminal.until("> ")
    terminal.type(f"again{ENTER}")
    terminal.until("again\r\n")
    terminal.until("again")
    ask(terminal, "other")
    terminal.type(UP + UP + ENTER)
    terminal.until("again")  # as it was brought back
    terminal.until("\r\nagain")
    terminal.until("\r\n> ")
    terminal.type(CTRL_D)
    assert terminal.end() == 0


def test_ctrl_c_ends_the_text_that_is_written_and_not_the_loop(terminal: Terminal) -> None:
    """The text would have a million tokens: it is seen to be streamed. It goes round in a circle,
    in which nothing looks like the prompt."""
    terminal.type(f"/temperature 0{ENTER}")
    terminal.until("> ")
    terminal.type(f"endless{ENTER}")
    terminal.until("endless\r\n")
    terminal.until("endless")
    terminal.type(CTRL_C)
    terminal.until("\r\n> ")  # what is typed before it is flushed
    ask(terminal, "still")
    terminal.type(f"/quit{ENTER}")
    assert terminal.end() == 0


def test_ctrl_c_at_the_prompt_ends_it_the_second_time(terminal: Terminal) -> None:
    terminal.press_until(CTRL_C, "Ctrl-C once more ends")
    terminal.until("> ")
    ask(terminal, "no")
    terminal.press_until(CTRL_C, "Ctrl-C once more ends")
    terminal.until("> ")
    assert terminal.end(lambda: terminal.type(CTRL_C)) == 130


def test_sigterm_at_the_prompt_ends_it_as_elsewhere(terminal: Terminal) -> None:
    assert terminal.end(lambda: os.kill(terminal.pid, signal.SIGTERM)) == 143
