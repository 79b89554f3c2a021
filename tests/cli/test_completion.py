"""Completion, as a real shell completes what was typed so far."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from app.cli import parser as cli

# What was typed, the last word of it not to its end, and what has to be offered then.
TYPED = [
    (["checkpoints", "l"], {"list"}),
    (["train", "--trainer", "l"], {"lightning"}),
    (["train", "--document_mask", "t"], {"true"}),
    (["checkpoints", "list", "--js"], {"--json"}),
    (["train", "--metrics_"], {"--metrics_port", "--metrics_host"}),
    (["quarantine", "list", "--attem"], set()),  # a flag of another command
    (["completion", "b"], {"bash"}),
]


def script(shell: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert cli.main(["completion", shell]) == 0
    path = folder / "completion"
    path.write_text(capsys.readouterr().out, "utf-8")
    return path


def said(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.splitlines()


def shell_here(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed here")
    return found


def in_bash(path: Path, *words: str) -> set[str]:
    typed = " ".join(map(shlex.quote, ("python", *words)))
    asked = (
        f"source {shlex.quote(str(path))}; COMP_WORDS=({typed}); "
        'COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _smollm2; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    return set(said(shell_here("bash"), "--norc", "-c", asked)) - {""}


def test_bash_completes_commands_flags_and_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = script("bash", tmp_path, capsys)
    for words, offered in TYPED:
        assert in_bash(path, "-m", "app", *words) == offered, words
    assert {"train", "checkpoints", "completion"} <= in_bash(path, "-m", "app", "")
    assert in_bash(path, "-m", "app", "train", "--trainer", "=", "t") == {"torch"}
    assert in_bash(path, "-m", "other", "") == set(), "another module is none of ours"
    assert in_bash(path, "-m", "app", "report", "--to", "") == set(), "the shell offers files"


def test_fish_completes_commands_flags_and_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fish, path = shell_here("fish"), script("fish", tmp_path, capsys)
    for words, offered in TYPED:
        typed = shlex.quote(f"python -m app {' '.join(words)}")
        found = said(fish, "-N", "-c", f"source {path}; complete -C {typed}")
        assert {line.split("\t")[0] for line in found} == offered, words


def test_zsh_reads_the_script_and_offers_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zsh, path = shell_here("zsh"), script("zsh", tmp_path, capsys)
    asked = (
        f"zmodload zsh/complete; autoload -Uz compinit; compinit -u -D; source {path}; "
        "emulate -L sh; setopt kshglob noshglob braceexpand; "
        'COMP_WORDS=(python -m app ""); COMP_CWORD=3; _smollm2; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    assert {"train", "checkpoints", "completion"} <= set(said(zsh, "-f", "-c", asked))


def test_another_shell_is_a_bad_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "csh"]) == 64
